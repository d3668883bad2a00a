"""Rows of raw text (stage `pt`), which hold no messages and no labels of their own."""

from itertools import pairwise
from typing import Any

from ...feedback import IGNORE_INDEX, Reason
from ...inspection.inspected_sample import Part, Turn
from ..data.token_table import LOSS_MASK_COLUMN


TEXT = "text"
"""What stands where the role of a message stands."""


def with_labels(row: dict[str, Any], pad_id: int | None) -> dict[str, Any]:
    """Return a row with the labels that the collator makes of its ids; a row that has labels stays as it is.

    Args:
        row: Of any stage.
        pad_id: Id that is taken for padding, wherever it stands.
    """
    if "labels" in row:
        return row
    return {**row, "labels": [IGNORE_INDEX if token == pad_id else int(token) for token in row["input_ids"]]}


def read_texts(row: dict[str, Any], described: list[dict[str, Any]]) -> tuple[list[Part], list[Turn]]:
    """Return the texts of a row, each a sample and one turn of it.

    Args:
        row: Prepared.
        described: What it says of its samples.
    """
    bounds = [*(values["start"] for values in described), len(row["input_ids"])]
    parts = [Part(stop=stop, **values) for values, (_, stop) in zip(described, pairwise(bounds))]
    return parts, [Turn(number, None, TEXT, part.start, part.stop) for number, part in enumerate(parts)]


def reasons_of(row: dict[str, Any], labels: list[int]) -> list[str | None]:
    """Return why each token is not trained; None where it is.

    Args:
        row: Prepared.
        labels: Its labels, masked.
    """
    masks = row.get(LOSS_MASK_COLUMN) or [1] * len(labels)
    return [
        None if label != IGNORE_INDEX else Reason.PADDING if mask else Reason.BEFORE_MARKER
        for label, mask in zip(labels, masks)
    ]
