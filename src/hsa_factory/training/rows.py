"""Rows before they become a batch: their columns read, checked against each other, and named in errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch

from ..feedback import IGNORE_INDEX
from ..semantics import SemanticType
from .columns import (
    DOCUMENT_COLUMNS,
    LOSS_WEIGHTS_COLUMN,
    MEDIA_COLUMNS,
    SEMANTIC_COLUMN,
    TOKEN_COLUMNS,
    TURN_COLUMN,
)


_SHOWN = 12  # tokens that show in an error which row it is
_ENCODE = "Rows come from encode_conversation"


@dataclass
class Row:
    """One row.

    Args:
        tokens: Lists of L values by name of the column, `attention_mask` and `semantic_ids` always among them.
        media: Tensors by name of the column.
        lengths: Of the documents of a packed row; None: the row is one document.
        name: For messages.
    """

    tokens: dict[str, list[Any]]
    media: dict[str, torch.Tensor]
    lengths: list[int] | None
    name: str

    def __len__(self) -> int:
        return len(self.tokens["input_ids"])

    def begin_documents(self) -> None:
        """Take the first label of each document of a packed row out of the loss: another's last token foretells it."""
        if self.lengths is not None and "labels" in self.tokens:
            for start in accumulate(self.lengths[:-1], initial=0):
                self.tokens["labels"][start] = IGNORE_INDEX

    @property
    def positions(self) -> list[int]:
        """The place of each token in its document."""
        return [place for length in self.lengths or [len(self)] for place in range(length)]


def read_rows(rows: Sequence[Mapping[str, Any]], tokenizer: Any, prefix: str = "") -> list[Row]:
    """Read and check rows. Columns that are not known are left out, as transformers' Trainer does.

    Args:
        rows: As `encode_conversation` makes them. A column that is None counts as missing, as `datasets` fills it in.
        tokenizer: The tokenizer or processor; it shows in errors how a row begins.
        prefix: Of the columns: ``chosen_`` or ``rejected_`` of a pair.

    Raises:
        ValueError: Naming the row, if it has no ids or no types, lengths differ, a type is unknown, it lacks a column that
            others have, or it stands for images or videos that are not there.
    """
    read = [_read(row, number, tokenizer, prefix) for number, row in enumerate(rows)]
    for column in (TURN_COLUMN, "labels"):
        having = [row for row in read if column in row.tokens]
        if having and len(having) < len(read):
            lacking = next(row for row in read if column not in row.tokens)
            raise ValueError(
                f"{lacking.name} has no `{prefix}{column}`, but others have. {_ENCODE} of one configuration."
            )
    _check_media(read, tokenizer)
    fillers = {LOSS_WEIGHTS_COLUMN: 1.0, "token_type_ids": 0, "mm_token_type_ids": 0}
    for column, filler in fillers.items():
        if any(column in row.tokens for row in read):
            for row in read:
                row.tokens.setdefault(column, [filler] * len(row))
    return read


def text_tokenizer(tokenizer: Any) -> Any:
    """Return the tokenizer of a processor, or the tokenizer itself."""
    return getattr(tokenizer, "tokenizer", tokenizer)


def _check_media(rows: list[Row], processor: Any) -> None:
    """Refuse rows with places of images or videos whose pixels were lost: a model would read the places as text."""
    for kind, column in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        place = getattr(processor, f"{kind}_token_id", None)
        for row in rows:
            if place is not None and place in row.tokens["input_ids"] and column not in row.media:
                raise ValueError(
                    f"{row.name} has places of {kind}s, but no `{column}`. A `datasets` data set has the columns of its first "
                    f"row: let that be one with {kind}s, or give a list of rows."
                )


def as_list(values: Any) -> list[Any]:
    """Return a tensor, array or sequence as a list; a batch of one row as that row."""
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    return as_list(values[0]) if len(values) == 1 and isinstance(values[0], (list, tuple)) else values


def _read(row: Mapping[str, Any], number: int, tokenizer: Any, prefix: str) -> Row:
    def get(column: str) -> Any:
        return row.get(prefix + column)

    ids = get("input_ids") if get("input_ids") is not None else get("ids")  # the latter: newer TRL's name
    if ids is None:
        raise ValueError(
            f"Row {number} of the batch has no `{prefix}input_ids`, but {', '.join(row) or 'nothing'}. {_ENCODE}."
        )
    tokens = {"input_ids": as_list(ids)}
    name = _name(tokens["input_ids"], number, tokenizer)
    if get(SEMANTIC_COLUMN) is None:
        raise ValueError(
            f"{name} has no `{prefix}{SEMANTIC_COLUMN}`. {_ENCODE}; if it was there, a trainer has dropped it: set "
            "`remove_unused_columns=False`, and for TRL `dataset_kwargs={'skip_prepare_dataset': True}`."
        )
    for column in TOKEN_COLUMNS:
        if column != "input_ids" and get(column) is not None:
            tokens[column] = as_list(get(column))
            if len(tokens[column]) != len(tokens["input_ids"]):
                raise ValueError(
                    f"{name}: {len(tokens[column])} `{prefix}{column}` do not fit {len(tokens['input_ids'])} input_ids. If the "
                    "trainer has cut the row, let it not (`max_length=None`) and give encode_conversation a max_length."
                )
    unknown = {kind for kind in tokens[SEMANTIC_COLUMN] if kind not in set(SemanticType)}
    if unknown:
        raise ValueError(f"{name}: `{prefix}{SEMANTIC_COLUMN}` holds {sorted(unknown, key=str)}; a type is 0, 1 or 2.")
    tokens.setdefault("attention_mask", [1] * len(tokens["input_ids"]))
    media = {column: _tensor(get(column)) for column in MEDIA_COLUMNS if get(column) is not None}
    found = next((column for column in DOCUMENT_COLUMNS if get(column) is not None), None)
    lengths = None if found is None else _lengths(found, as_list(get(found)), len(tokens["input_ids"]), name)
    return Row(tokens, media, lengths, name)


def _name(ids: list[int], number: int, tokenizer: Any) -> str:
    return f"Row {number} of the batch ({text_tokenizer(tokenizer).decode(ids[:_SHOWN])!r} …)"


def _tensor(values: Any) -> torch.Tensor:
    tensor = torch.as_tensor(values)
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _lengths(column: str, values: list[Any], total: int, name: str) -> list[int]:
    """Return the lengths of a packed row's documents."""
    if column == "seq_lengths":
        lengths = [length for length in values if length]
    elif not all(isinstance(value, int) for value in values):
        raise ValueError(f"{name}: `{column}` must be one whole number a token.")
    else:
        # positions go up by 1 within a document, numbers of documents stay
        keys = [value - place for place, value in enumerate(values)] if column == "position_ids" else values
        lengths = [len(list(group)) for _, group in groupby(keys)]
    if sum(lengths) != total:
        raise ValueError(f"{name}: `{column}` tells of {sum(lengths)} tokens, but there are {total} input_ids.")
    return lengths
