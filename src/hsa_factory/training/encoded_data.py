"""Data sets of encoded rows: told from raw ones, and not cut by a trainer that knows nothing of types."""

from functools import partial
from typing import Any

from .columns import SEMANTIC_COLUMN


def column_names(data: Any) -> list[str]:
    """Return the columns of a `datasets` data set or stream."""
    return list(next(iter(data)) if data.column_names is None else data.column_names)


def check_encoded(data: Any, name: str, max_length: int | None, prefixes: tuple[str, ...] = ("",)) -> Any:
    """Refuse a data set whose rows have no types, or are longer than a trainer allows.

    Args:
        data: A `datasets` data set or stream.
        name: For messages.
        max_length: The trainer's, in tokens; None: no limit.
        prefixes: Of the columns: those of pairs have two.

    Returns:
        The data set; of a stream, one whose rows are checked as they come.

    Raises:
        ValueError: If so.
    """
    columns = column_names(data)
    for prefix in prefixes:
        if prefix + SEMANTIC_COLUMN not in columns:
            how = "pair_rows(encode_conversation(...), encode_conversation(...))" if prefix else "encode_conversation"
            raise ValueError(
                f"The {name} data have no column `{prefix}{SEMANTIC_COLUMN}`, but {', '.join(columns)}: encode their rows with "
                f"{how} first."
            )
        if max_length is not None:
            data = _check_lengths(data, name, max_length, f"{prefix}input_ids")
    return data


def _check_lengths(data: Any, name: str, max_length: int, column: str) -> Any:
    if not hasattr(data, "__len__"):
        return data.map(partial(_check_length, name=name, max_length=max_length, column=column), with_indices=True)
    from pyarrow import compute

    start = 0
    for table in data.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        lengths = compute.list_value_length(table[column]).to_pylist()
        for number, length in enumerate(lengths, start):
            _refuse_long(length, number, name, max_length)
        start += len(lengths)
    return data


def _check_length(row: dict[str, Any], number: int, name: str, max_length: int, column: str) -> dict[str, Any]:
    _refuse_long(len(row[column]), number, name, max_length)
    return row


def _refuse_long(length: int, number: int, name: str, max_length: int) -> None:
    if length > max_length:
        raise ValueError(
            f"Row {number} of the {name} data has {length} tokens, but the trainer's max_length is {max_length}. Set "
            f"max_length=None in its arguments, or encode with encode_conversation(..., max_length={max_length})."
        )
