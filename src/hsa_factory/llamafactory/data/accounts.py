"""Accounts on their way through map and cache: the counts of a batch ride in its first row, as JSON.

So nothing has to be taken out of the rows of a batch afterwards, however many they are. A batch of which no sample is left gets a
row for its account alone, which is taken out.
"""

from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets


ACCOUNT_COLUMN = "hsa_account"  # counts of a batch, as JSON; None in the others of its rows
_ALONE = " "  # how an account begins whose row is no sample; JSON does not mind it


def account_column(serialized: str, rows: int) -> list[str | None]:
    """Return the column of a batch.

    Args:
        serialized: The counts.
        rows: Rows of the batch; 0: one that stands for no sample carries the account.
    """
    return [serialized, *[None] * (rows - 1)] if rows else [_ALONE + serialized]


def is_account_alone(serialized: str | None) -> bool:
    """Return whether a row stands for no sample, by its entry in the column."""
    return serialized is not None and serialized.startswith(_ALONE)


def take_accounts(dataset: Dataset) -> tuple[Dataset, list[str]]:
    """Return the rows that are samples, without the column, and what was in it."""
    column: pa.ChunkedArray = dataset.select_columns(ACCOUNT_COLUMN).with_format("arrow")[:][ACCOUNT_COLUMN]
    rows, accounts = dataset.remove_columns(ACCOUNT_COLUMN), pc.drop_null(column).to_pylist()
    if not any(map(is_account_alone, accounts)):
        return rows, accounts
    alone = pc.indices_nonzero(pc.fill_null(pc.starts_with(column, _ALONE), False)).to_pylist()
    bounds = pairwise([-1, *alone, len(rows)])
    # a list of all other rows would be a mapping through which every later access goes
    kept = [rows.select(range(before + 1, after)) for before, after in bounds if before + 1 < after]
    return (concatenate_datasets(kept) if kept else rows.select(range(0))), accounts


def without_account(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a stream without its entry."""
    return {name: value for name, value in row.items() if name != ACCOUNT_COLUMN}
