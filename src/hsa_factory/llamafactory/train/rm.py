"""Stage `rm`: pairs for a model with a value head, which scores each side at its last token."""

from functools import partial
from typing import Any

import llamafactory.train.rm.workflow

from ..data.loader import get_dataset_seam
from ..data.pairwise_collator import HSAPairwiseCollator
from ..model.loader import load_model_seam
from ..seams import Seam
from ..state import Integration
from .card import write_card_seam


def rm_seams(state: Integration) -> list[Seam]:
    """Return what is replaced in LLaMA-Factory's training of reward models."""
    workflow = llamafactory.train.rm.workflow
    return [
        get_dataset_seam(workflow, state, "rm"),
        load_model_seam(workflow, state),
        Seam(workflow, "PairwiseDataCollatorWithPadding", partial(_make_collator, state)),
        write_card_seam(workflow, state),
    ]


def _make_collator(state: Integration, original: Any, *args: Any, **kwargs: Any) -> HSAPairwiseCollator:
    """Make the collator that also pads types; no label counts here, and feedback masks none."""
    return HSAPairwiseCollator(*args, hsa_config=state.hsa_config, **kwargs)
