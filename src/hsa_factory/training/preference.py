"""Pairs of conversations, one chosen and one rejected: a row of both, and their batch (DPO, reward models)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..feedback import IGNORE_INDEX
from .collator import check_options, pad_columns, pad_id, pad_rows
from .columns import LOSS_WEIGHTS_COLUMN
from .rows import as_list, read_rows


SIDES = ("chosen", "rejected")
"""The prefixes of a pair's columns, before a `_`."""

_NUMBERS = ("margin", "ref_chosen_logps", "ref_rejected_logps")


def pair_rows(chosen: Mapping[str, Any], rejected: Mapping[str, Any]) -> dict[str, Any]:
    """Make one row of two, for `DPOTrainer` and `RewardTrainer`.

    Each is a whole conversation. What both begin with is not trained: the prompt, up to the reply in which they part.

    Args:
        chosen: A row of `encode_conversation`.
        rejected: The other one.

    Returns:
        The columns of both, as ``chosen_input_ids``, ``rejected_input_ids`` and so on.

    Raises:
        ValueError: If nothing of one would be trained, or a row has weights, which these losses do not know.
    """
    rows = [dict(chosen), dict(rejected)]
    for side, row in zip(SIDES, rows, strict=True):
        if row.pop(LOSS_WEIGHTS_COLUMN, None) is not None:
            raise ValueError(
                f"The {side} row has `{LOSS_WEIGHTS_COLUMN}`: the loss of pairs knows no weights. Remove them."
            )
        row.pop("attention_mask", None)
        row["labels"] = as_list(row["labels"])
    shared = _shared_length(*rows)
    pair: dict[str, Any] = {}
    for side, row in zip(SIDES, rows, strict=True):
        row["labels"] = [IGNORE_INDEX] * shared + row["labels"][shared:]
        if all(label == IGNORE_INDEX for label in row["labels"]):
            raise ValueError(f"The {side} row has no trained token that the other has not: such a pair says nothing.")
        pair |= {f"{side}_{column}": values for column, values in row.items()}
    return pair


def _shared_length(chosen: Mapping[str, Any], rejected: Mapping[str, Any]) -> int:
    """Return how many tokens stand before the reply in which two rows part."""
    ids = [as_list(row["input_ids"]) for row in (chosen, rejected)]
    place = next((n for n, (one, other) in enumerate(zip(*ids, strict=False)) if one != other), min(map(len, ids)))
    while place and all(row["labels"][place - 1] != IGNORE_INDEX for row in (chosen, rejected)):
        place -= 1
    return place


@dataclass(frozen=True)
class HSAPreferenceCollator:
    """Makes a batch with types of rows of `pair_rows`: first all chosen ones, then all rejected ones, padded on the right.

    B pairs, L tokens.

    Args:
        tokenizer: The tokenizer or processor that encoded the rows.
        pad_to_multiple_of: L becomes a multiple of it; None: the longest row's length.
        completion_mask: Whether the batch says which tokens are the answers'. False for `RewardTrainer`, which hands all of
            it to its model.

    Returns:
        `input_ids`, `attention_mask`, `semantic_ids` and, where the rows have them, `turn_ids` (2·B, L), images and videos;
        `completion_mask` (2·B, L), 1 at trained tokens; `margin` and reference log-probabilities (B) where rows have them.

    Raises:
        ValueError: If an option is not allowed, or a row does not fit (it is named).
    """

    tokenizer: Any
    pad_to_multiple_of: int | None = None
    completion_mask: bool = True

    def __post_init__(self) -> None:
        check_options(self)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch."""
        if not rows:
            raise ValueError("HSAPreferenceCollator: there are no rows to make a batch of.")
        both = [row for side in SIDES for row in read_rows(rows, self.tokenizer, f"{side}_")]
        batch = pad_rows(both, pad_id(self.tokenizer), "right", self.pad_to_multiple_of)
        batch.pop("labels", None)
        if self.completion_mask:
            if any("labels" not in row.tokens for row in both):
                raise ValueError("Pairs without labels do not say which tokens are trained: make them with pair_rows.")
            trained = [[int(label != IGNORE_INDEX) for label in row.tokens["labels"]] for row in both]
            batch["completion_mask"] = pad_columns(trained, batch["input_ids"].shape[1], 0, "right")
        for name in _NUMBERS:
            if all(row.get(name) is not None for row in rows):
                batch[name] = torch.tensor([float(row[name]) for row in rows])
        return batch
