"""What is replaced in every stage: its data, its model, its collator, and the card of what it has trained."""

from functools import partial
from types import ModuleType
from typing import Any

from ..data.loader import get_dataset_seam
from ..model.loader import load_model_seam
from ..seams import Seam
from ..state import Integration
from .card import write_card_seam


def common_seams(
    workflow: ModuleType, state: Integration, stage: str, collator: str, collator_class: type, masks: bool = True
) -> list[Seam]:
    """Return what is replaced in the module of any stage.

    Args:
        workflow: LLaMA-Factory's module that runs the stage.
        state: The integration.
        stage: Its name.
        collator: What the module calls LLaMA-Factory's collator.
        collator_class: Ours in its place, which pads types and masks labels.
        masks: Whether feedback masks labels here.
    """
    return [
        get_dataset_seam(workflow, state, stage),
        load_model_seam(workflow, state),
        Seam(workflow, collator, partial(_make_collator, state, collator_class, masks)),
        write_card_seam(workflow, state),
    ]


def _make_collator(
    state: Integration, collator_class: type, masks: bool, original: Any, *args: Any, **kwargs: Any
) -> Any:
    """Make our collator; the rules of a run are known by now."""
    feedback_config = state.feedback_config if masks else None
    return collator_class(*args, hsa_config=state.hsa_config, feedback_config=feedback_config, **kwargs)
