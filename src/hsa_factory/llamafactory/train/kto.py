"""Stage `kto`: replies with a label, and a reference model that attends as the trained one does."""

from functools import partial
from typing import Any

import llamafactory.train.kto.workflow
from llamafactory.train.kto.trainer import CustomKTOTrainer

from ..data.labelled_collator import HSALabelledCollator
from ..data.loader import get_dataset_seam
from ..data.token_table import SEMANTIC_COLUMN, TURN_COLUMN
from ..model.loader import load_model_seam
from ..seams import Seam
from ..state import Integration
from .card import write_card_seam


def kto_seams(state: Integration) -> list[Seam]:
    """Return what is replaced in LLaMA-Factory's training on labels."""
    workflow = llamafactory.train.kto.workflow
    return [
        get_dataset_seam(workflow, state, "kto"),
        load_model_seam(workflow, state),
        Seam(workflow, "KTODataCollatorWithPadding", partial(_make_collator, state)),
        Seam(CustomKTOTrainer, "forward", _forward),
        write_card_seam(workflow, state),
    ]


def _make_collator(state: Integration, original: Any, **kwargs: Any) -> HSALabelledCollator:
    """Make the collator that also masks labels and pads types."""
    return HSALabelledCollator(hsa_config=state.hsa_config, feedback_config=state.feedback_config, **kwargs)


def _forward(original: Any, trainer: Any, model: Any, batch: dict[str, Any], prefix: str = "") -> Any:
    """Hand on the types of the half that a model is asked for: LLaMA-Factory picks the inputs that it knows."""
    types = {column: batch[prefix + column] for column in (SEMANTIC_COLUMN, TURN_COLUMN) if prefix + column in batch}
    return original(trainer, partial(model, **types) if types else model, batch, prefix)
