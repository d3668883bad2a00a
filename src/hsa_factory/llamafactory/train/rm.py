"""Stage `rm`: pairs for a model with a value head, which scores each side at its last token."""

import llamafactory.train.rm.workflow

from ..data.loader import get_dataset_seam
from ..model.loader import load_model_seam
from ..seams import Seam
from ..state import Integration
from .card import write_card_seam
from .dpo import pairwise_collator_seam


def rm_seams(state: Integration) -> list[Seam]:
    """Return what is replaced in LLaMA-Factory's training of reward models."""
    workflow = llamafactory.train.rm.workflow
    return [
        get_dataset_seam(workflow, state),
        load_model_seam(workflow, state),
        pairwise_collator_seam(workflow, state),
        write_card_seam(workflow, state),
    ]
