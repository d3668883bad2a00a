"""Stage `dpo`: pairs, and a reference model that attends as the trained one does."""

from typing import Any

import llamafactory.train.dpo.workflow
from llamafactory.extras import logging

from ..data.pairwise_collator import HSAPairwiseCollator
from ..seams import Seam
from ..state import Integration
from .common import common_seams


logger = logging.get_logger(__name__)

_NAMED_ONLY = ("hinge", "ipo", "kto_pair")


def check_dpo(state: Integration, finetuning_args: Any) -> None:
    """Warn of losses that LLaMA-Factory takes the name of and does not compute."""
    if finetuning_args.pref_loss in _NAMED_ONLY:
        logger.warning_rank0(
            f"`pref_loss: {finetuning_args.pref_loss}`: LLaMA-Factory does not tell trl which loss it wants, and trl computes the "
            f"sigmoid loss{' of mean log-probabilities' if finetuning_args.pref_loss == 'ipo' else ''}, with HSA and without."
        )


def dpo_seams(state: Integration) -> list[Seam]:
    """Return what is replaced in LLaMA-Factory's training by preference."""
    workflow = llamafactory.train.dpo.workflow
    return common_seams(workflow, state, "dpo", "PairwiseDataCollatorWithPadding", HSAPairwiseCollator)
