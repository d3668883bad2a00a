"""Stage `dpo`: pairs, and a reference model that attends as the trained one does."""

from functools import partial
from typing import Any

import llamafactory.train.dpo.workflow
from llamafactory.extras import logging

from ..data.loader import get_dataset_seam
from ..data.pairwise_collator import HSAPairwiseCollator
from ..model.loader import load_model_seam
from ..seams import Seam
from ..state import Integration
from .card import write_card_seam


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
    return [
        get_dataset_seam(workflow, state, "dpo"),
        load_model_seam(workflow, state),
        pairwise_collator_seam(workflow, state),
        write_card_seam(workflow, state),
    ]


def pairwise_collator_seam(module: Any, state: Integration) -> Seam:
    """Return the replacement of the collator of pairs in the module of a stage."""
    return Seam(module, "PairwiseDataCollatorWithPadding", partial(_make_collator, state))


def _make_collator(state: Integration, original: Any, *args: Any, **kwargs: Any) -> HSAPairwiseCollator:
    """Make the collator that also masks labels and pads types."""
    return HSAPairwiseCollator(*args, hsa_config=state.hsa_config, feedback_config=state.feedback_config, **kwargs)
