"""What a Trainer's run is checked for before its first step, and the rules that are saved with what it saves."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..config import CONFIG_NAME, HSAConfig
from ..models.enable import get_state
from ..models.forward_pass import HSAState
from .columns import LOSS_WEIGHTS_COLUMN, SEMANTIC_COLUMN, TURN_COLUMN
from .trl_names import refuse_trl_trainer
from .weighted_loss import WeightedLossMixin


logger = logging.getLogger(__name__)


class HSATrainerCallback(TrainerCallback):
    """Saves ``hsa_config.json`` with each checkpoint and at the end, and refuses a run whose types get lost.

    Given to a trainer when it is made (`callbacks=[HSATrainerCallback()]`), it sets `remove_unused_columns` to False, which
    would drop the types. Before the first step it makes a batch of the first row of the training data, as the run will; of
    evaluation data before the first step, too, if it knows the trainer, else at their first batch. `hsa_trainer` adds it by
    itself. Rows of a stream are not looked at ahead: there `HSADataCollator` and the model's forward refuse what lacks types.

    Args:
        trainer: The trainer, where the callback is added to one that was made already; None: not known.

    Raises:
        ValueError: When training begins, if the model has no HSA, or other rules than the checkpoint it goes on from, a batch
            has no types (or no turns that the rules need, or weights that the trainer's loss leaves out), or the trainer
            does not hand types to its model.
    """

    def __init__(self, trainer: Any = None) -> None:
        self.trainer = trainer
        self._checked: Any = None

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the columns that no model names in its forward."""
        if args.remove_unused_columns:
            logger.info("HSA: remove_unused_columns is set to False, so that the types of tokens are kept.")
            args.remove_unused_columns = False

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Look at what the run is about to do."""
        hsa_state = _state_of(model)
        if state is not None and state.global_step:
            _check_resumed(_checkpoint(args, state), hsa_state)
        _refuse_trainer(args, self.trainer)
        self._check(train_dataloader, "training", hsa_state)
        if self.trainer is not None and self.trainer.eval_dataset is not None:
            data = self.trainer.eval_dataset
            for name in data if isinstance(data, Mapping) else (None,):
                self._check(self.trainer.get_eval_dataloader(name), f"evaluation ({name or 'eval'})", hsa_state)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, model: Any = None, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Look at evaluation data that were not known before."""
        if eval_dataloader is not self._checked:
            self._checked = eval_dataloader
            self._check(eval_dataloader, "evaluation", _state_of(model))

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Put the rules beside a checkpoint."""
        self._save(_checkpoint(args, state), args, model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Put the rules where the trained model is saved."""
        self._save(Path(args.output_dir), args, model)

    def _check(self, loader: Any, use: str, hsa_state: HSAState) -> None:
        data: Any = getattr(loader, "dataset", None)
        collate: Any = getattr(loader, "collate_fn", None)
        if collate is None or not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or not len(data):
            return
        with torch.random.fork_rng(devices=[]):  # a collator that draws numbers draws the same ones afterwards
            batch = collate([data[0]])
        check_batch(batch, collate, use, hsa_state)
        if LOSS_WEIGHTS_COLUMN in batch and not isinstance(self.trainer, WeightedLossMixin):
            raise ValueError(
                f"The {use} data have `{LOSS_WEIGHTS_COLUMN}`, but the trainer's loss leaves them out: make it of "
                "hsa_factory.training.hsa_trainer(Trainer), or remove the weights."
            )

    def _save(self, directory: Path, args: Any, model: Any) -> None:
        hsa_state = get_state(model)
        if args.should_save and hsa_state is not None and directory.is_dir():
            hsa_state.config.save_pretrained(directory)


def check_batch(batch: Any, collate: Any, use: str, hsa_state: HSAState) -> None:
    """Refuse a batch without types, or without turn numbers where the rules of the model have turns."""
    needed = [SEMANTIC_COLUMN, *([TURN_COLUMN] if hsa_state.config.has_turns else [])]
    for column in needed:
        if not isinstance(batch, Mapping) or batch.get(column) is None:
            inner = getattr(collate, "data_collator", collate)  # what removes columns first
            name = getattr(inner, "__name__", type(inner).__name__)
            raise ValueError(
                f"A batch of the {use} data has no `{column}`: {name} leaves it out, or it was dropped before. Encode the "
                "rows with encode_conversation and the model's HSAConfig, give the trainer data_collator=HSADataCollator("
                "tokenizer) and, when it is made, callbacks=[HSATrainerCallback()] (or set remove_unused_columns=False)."
            )


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _check_resumed(checkpoint: Path, hsa_state: HSAState) -> None:
    """Refuse to go on by other rules than a checkpoint was made with, if they lie there."""
    if (checkpoint / CONFIG_NAME).is_file():
        saved = HSAConfig.from_pretrained(checkpoint)
        if saved.attention_rules() != hsa_state.config.attention_rules():
            raise ValueError(
                f"{checkpoint} was made with other rules of attention than the model has now. Go on with its own, "
                f"enable_hsa(model, HSAConfig.from_pretrained({str(checkpoint)!r})), or begin a new run from its weights, "
                "without resume_from_checkpoint."
            )


def _refuse_trainer(args: Any, trainer: Any) -> None:
    """Refuse TRL's trainers that do not hand types to the model, known by their arguments."""
    for config in type(args).__mro__:
        if config.__module__.split(".")[0] == "trl" and config.__name__.endswith("Config"):
            refuse_trl_trainer(
                config.__name__.removesuffix("Config") + "Trainer", isinstance(trainer, WeightedLossMixin)
            )
            return


def _state_of(model: nn.Module) -> HSAState:
    state = get_state(model)
    if state is None:
        raise ValueError(
            f"HSATrainerCallback: {type(model).__name__} has no HSA. Call enable_hsa(model, config) before the trainer is made."
        )
    return state
