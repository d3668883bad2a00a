"""LLaMA-Factory's collator of pairs: first all chosen rows, then all rejected ones, each with its types."""

from dataclasses import dataclass
from typing import Any

import torch
from llamafactory.data.collator import PairwiseDataCollatorWithPadding

from ...training.preference import SIDES
from .collator import TypedCollatorMixin
from .token_table import LOSS_MASK_COLUMN, SEMANTIC_COLUMN, TURN_COLUMN


_CARRIED = (SEMANTIC_COLUMN, TURN_COLUMN, LOSS_MASK_COLUMN)


def carried_columns(feature: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return what LLaMA-Factory's collators leave behind when they make rows of a feature, by the row's own names.

    Args:
        feature: A row of the data set.
        prefix: What the columns of the sequence begin with.
    """
    return {name: feature[prefix + name] for name in _CARRIED if prefix + name in feature}


@dataclass
class HSAPairwiseCollator(PairwiseDataCollatorWithPadding, TypedCollatorMixin):
    """Pads pairs as LLaMA-Factory does, and the types of both sides with them: (2·B, L), B pairs.

    Features hold, for `chosen_` and for `rejected_`, what `TypedCollatorMixin` needs of a row.
    """

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> dict[str, torch.Tensor]:
        """Make a batch."""
        self._carried = [carried_columns(feature, f"{side}_") for side in SIDES for feature in features]
        return super().__call__(features)
