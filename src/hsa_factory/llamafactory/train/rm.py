"""Stage `rm`: pairs for a model with a value head, which scores each side at its last token."""

from functools import cache
from pathlib import Path
from typing import Any

import llamafactory.train.rm.workflow
from llamafactory.extras import logging
from llamafactory.extras.constants import V_HEAD_SAFE_WEIGHTS_NAME
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file

from ..data.pairwise_collator import HSAPairwiseCollator
from ..seams import Seam
from ..state import Integration
from .common import common_seams


logger = logging.get_logger(__name__)

_Trainer: Any = object  # LLaMA-Factory's own class stands behind the mixin


def rm_seams(state: Integration) -> list[Seam]:
    """Return what is replaced in LLaMA-Factory's training of reward models."""
    workflow = llamafactory.train.rm.workflow
    return [
        # no label counts here, and feedback masks none
        *common_seams(workflow, state, "rm", "PairwiseDataCollatorWithPadding", HSAPairwiseCollator, masks=False),
        Seam(workflow, "PairwiseTrainer", _make_trainer),
    ]


def check_rm(state: Integration, finetuning_args: Any) -> None:
    """Say what feedback does not do here."""
    if state.feedback_config is not None:
        logger.warning_rank0(
            "`stage: rm` has no loss of tokens: each reply is scored as a whole, and `feedback` masks nothing. What it says of "
            f"samples without {state.feedback_config.token} (`missing`) holds."
        )


class ResumingMixin(_Trainer):
    """Goes on from a checkpoint of an adapter: transformers does not look for one below a value head."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the adapter and the value head, or whatever transformers finds."""
        wrapper = self.model if model is None else model
        head = Path(resume_from_checkpoint, V_HEAD_SAFE_WEIGHTS_NAME)
        adapted = getattr(wrapper, "pretrained_model", None)
        if not (isinstance(adapted, PeftModel) and head.is_file()):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        set_peft_model_state_dict(adapted, load_peft_weights(resume_from_checkpoint, device="cpu"))
        wrapper.load_state_dict(load_file(head), strict=False)


@cache
def _resuming_trainer(trainer_class: type) -> type:
    return type(trainer_class.__name__, (ResumingMixin, trainer_class), {"__module__": __name__})


def _make_trainer(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Make the trainer that can go on from its checkpoints."""
    return _resuming_trainer(original)(*args, **kwargs)
