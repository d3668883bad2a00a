"""A training run without HSA leaves nothing that says its model was trained with HSA."""

from pathlib import Path
from typing import Any

from llamafactory.extras import logging
from transformers import PreTrainedConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..config import CONFIG_NAME
from ..models.model_card import NOTE_KEY, remove_card_section


logger = logging.get_logger(__name__)


class PlainRunCallback(TrainerCallback):
    """Takes away what former runs with HSA left where this run saves, and the note of the model that it began with."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the note out of the configuration of the model in memory."""
        for module in kwargs["model"].modules():
            config = getattr(module, "config", None)
            if isinstance(config, PreTrainedConfig):
                vars(config).pop(NOTE_KEY, None)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Run when a checkpoint has been written."""
        _forget(Path(str(args.output_dir), f"checkpoint-{state.global_step}"), state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Run before the model is saved in the output directory."""
        _forget(Path(str(args.output_dir)), state)


def _forget(directory: Path, state: TrainerState) -> None:
    path = directory / CONFIG_NAME
    if state.is_world_process_zero and path.is_file():
        logger.warning_rank0(f"{path} is of a former run with HSA; this run has none, and removes it.")
        path.unlink()
        remove_card_section(directory)
