"""Stage `kto`: replies with a label, and a reference model that attends as the trained one does."""

from functools import partial
from typing import Any

import llamafactory.train.kto.workflow
from llamafactory.train.kto.trainer import CustomKTOTrainer

from ..data.labelled_collator import HSALabelledCollator
from ..data.token_table import SEMANTIC_COLUMN, TURN_COLUMN
from ..seams import Seam
from ..state import Integration
from .common import common_seams


def kto_seams(state: Integration) -> list[Seam]:
    """Return what is replaced in LLaMA-Factory's training on labels."""
    workflow = llamafactory.train.kto.workflow
    return [
        *common_seams(workflow, state, "kto", "KTODataCollatorWithPadding", HSALabelledCollator),
        Seam(CustomKTOTrainer, "forward", _forward),
    ]


def _forward(original: Any, trainer: Any, model: Any, batch: dict[str, Any], prefix: str = "") -> Any:
    """Hand on the types of the half that a model is asked for: LLaMA-Factory picks the inputs that it knows."""
    types = {column: batch[prefix + column] for column in (SEMANTIC_COLUMN, TURN_COLUMN) if prefix + column in batch}
    return original(trainer, partial(model, **types) if types else model, batch, prefix)
