"""Rows of `encode_conversation` to a batch: padded, or all behind each other in one row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .columns import MEDIA_COLUMNS, TOKEN_COLUMNS
from .rows import Row, read_rows, text_tokenizer


@dataclass(frozen=True)
class HSADataCollator:
    """Makes a batch with types of rows that `encode_conversation` has made, for a Trainer, TRL, or a loop of one's own.

    A row may hold several documents (`seq_lengths` as TRL's `pack_dataset` writes it, `document_ids`, or `position_ids` that
    begin anew): they do not see each other. Columns that are not known are left out. B rows, L tokens.

    Args:
        tokenizer: The tokenizer or processor that encoded the rows.
        pad_to_multiple_of: L becomes a multiple of it; None: the longest row's length.
        padding_free: All rows behind each other in one row, with `position_ids` and without `attention_mask`, as
            transformers' `DataCollatorWithFlattening` does it.
        padding_side: ``left`` or ``right``; None: the tokenizer's.

    Returns:
        `input_ids`, `attention_mask`, `semantic_ids` (NOISE at padding), `labels` (-100 at padding), and where the rows have
        them `turn_ids`, `loss_weights` (float32, for `hsa_trainer`) and the processor's columns, images and videos behind
        each other. Of packed rows `position_ids` and `document_ids`, too. All (B, L); padding-free (1, L).

    Raises:
        ValueError: If an option is not allowed, a row does not fit (it is named), or no token of the batch is trained.

    Example:
        >>> HSADataCollator(tokenizer)([encode_conversation(tokenizer, messages, config) for messages in data])
    """

    tokenizer: Any
    pad_to_multiple_of: int | None = None
    padding_free: bool = False
    padding_side: str | None = None

    def __post_init__(self) -> None:
        check_options(self)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch."""
        if not rows:
            raise ValueError("HSADataCollator: there are no rows to make a batch of.")
        read = read_rows(rows, self.tokenizer)
        for row in read:
            row.begin_documents()
        if all("labels" in row.tokens and max(row.tokens["labels"][1:], default=-1) < 0 for row in read):
            raise ValueError(
                f"No token of this batch is trained ({read[0].name}, …): its loss would be NaN. Leave out rows whose labels "
                "are all -100."
            )
        return self._flatten(read) if self.padding_free else self._pad(read)

    def _pad(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        side = self.padding_side or text_tokenizer(self.tokenizer).padding_side
        batch = pad_rows(rows, pad_id(self.tokenizer), side, self.pad_to_multiple_of)
        if any(row.lengths is not None for row in rows):
            width = batch["input_ids"].shape[1]
            numbers = [
                [number for number, length in enumerate(row.lengths or [len(row)]) for _ in range(length)]
                for row in rows
            ]
            batch["document_ids"] = pad_columns(numbers, width, 0, side)
            batch["position_ids"] = pad_columns([row.positions for row in rows], width, 0, side)
        return batch

    def _flatten(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        for row in rows:
            if row.media:
                raise ValueError(
                    f"{row.name} has {', '.join(row.media)}: positions in images are counted by the model over a whole row, so "
                    "rows with images or videos cannot stand in one. Set padding_free=False."
                )
            if not all(row.tokens.pop("attention_mask")):
                raise ValueError(
                    f"{row.name} holds padding (0 in its attention_mask), which padding_free has no place for."
                )
            row.lengths = row.lengths or [len(row)]
            row.begin_documents()
        tokens = {column: [value for row in rows for value in row.tokens[column]] for column in rows[0].tokens}
        whole = Row(tokens, {}, [length for row in rows for length in row.lengths or ()], "")
        batch = pad_rows([whole], pad_id(self.tokenizer), "right", self.pad_to_multiple_of)
        added = batch["input_ids"].shape[1] - len(whole)
        batch["position_ids"] = torch.tensor([[*whole.positions, *range(added)]])  # padding is one document more
        return batch


def check_options(collator: Any) -> None:
    """Refuse options of a collator that are not allowed: the tokenizer, the multiple and the side, where it has one."""
    name, multiple = type(collator).__name__, collator.pad_to_multiple_of
    if not callable(getattr(text_tokenizer(collator.tokenizer), "decode", None)):
        raise ValueError(
            f"{name}.tokenizer must be a tokenizer or a processor, got {type(collator.tokenizer).__name__}."
        )
    if multiple is not None and (isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1):
        raise ValueError(
            f"{name}.pad_to_multiple_of = {multiple!r} is not allowed: a whole number from 1 on, or None."
        )
    side = getattr(collator, "padding_side", None)
    if side not in (None, "left", "right"):
        raise ValueError(f"{name}.padding_side = {side!r} is not allowed: 'left', 'right' or None.")
    pad_id(collator.tokenizer)


def pad_id(tokenizer: Any) -> int:
    """Return the id that pads `input_ids`: the padding token's, else the end token's.

    Raises:
        ValueError: If there is neither.
    """
    tokenizer = text_tokenizer(tokenizer)
    for number in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if number is not None:
            return int(number)
    raise ValueError("The tokenizer has neither a padding nor an end token: set tokenizer.pad_token.")


def pad_rows(rows: list[Row], padding: int, side: str, multiple: int | None) -> dict[str, torch.Tensor]:
    """Pad what rows hold to (B, L), and put their images and videos behind each other.

    Args:
        rows: With the same columns of tokens each.
        padding: Id at padding.
        side: ``left`` or ``right``.
        multiple: L is a multiple of it; None: of 1.
    """
    multiple = multiple or 1
    width = -(-max(map(len, rows)) // multiple) * multiple
    batch = {}
    for column, filler in TOKEN_COLUMNS.items():
        if column in rows[0].tokens:
            value = padding if column == "input_ids" else filler
            batch[column] = pad_columns([row.tokens[column] for row in rows], width, value, side)
    for column in MEDIA_COLUMNS:
        having = [row.media[column] for row in rows if column in row.media]
        if having:
            batch[column] = torch.cat(having)
    return batch


def pad_columns(columns: list[list[Any]], width: int, filler: float, side: str) -> torch.Tensor:
    """Return (B, `width`) int64, or float32 if `filler` is a float."""
    padded = torch.full(
        (len(columns), width), filler, dtype=torch.float32 if isinstance(filler, float) else torch.long
    )
    for number, values in enumerate(columns):
        start = width - len(values) if side == "left" else 0
        padded[number, start : start + len(values)] = torch.tensor(values, dtype=padded.dtype)
    return padded
