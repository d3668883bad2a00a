"""The CSV files of results: a row is one case, measured at one time on one machine."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SETTING = ("threads", "clock", "machine")
"""Columns that must agree, where a file has them, for rows to stand in one table."""


def read(name: str | Path) -> list[dict[str, str]]:
    """Read one CSV, by its name or its whole path; an empty list if there is none."""
    if not (RESULTS / name).is_file():
        return []
    with open(RESULTS / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(name: str, records: list[dict[str, Any]]) -> None:
    """Write one CSV."""
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def merge(name: str, records: list[dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Write records to a CSV in the place of its rows of the same case and setting; all other rows stay as they are.

    Args:
        name: Of the file.
        records: New rows, all with the same columns.
        keys: Columns that make a case.

    Returns:
        All rows, the kept ones first.
    """
    keys = (*keys, *(column for column in SETTING if column in records[0]))
    new = {tuple(_text(record[key]) for key in keys) for record in records}
    kept = [row for row in read(name) if tuple(row.get(key, "") for key in keys) not in new]
    empty = dict.fromkeys(records[0], "")
    rows = [empty | {column: row[column] for column in row if column in empty} for row in kept] + records
    write(name, rows)
    return rows


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def of_one_setting(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Return the rows of the setting (threads, clock, machine) that has most of them, the last of equals.

    A table or plot is made of such rows, so that it never mixes machines.
    """
    rows = list(rows)
    numbers = Counter(setting(row) for row in reversed(rows))
    chosen = numbers.most_common(1)[0][0] if rows else ()
    return [row for row in rows if setting(row) == chosen]


def setting(row: dict[str, str]) -> tuple[str, ...]:
    """Return the threads, clock and machine of a row; "" where the file does not say."""
    return tuple(row.get(column) or "" for column in SETTING)
