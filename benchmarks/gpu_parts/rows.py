"""Rows of a part in a CSV that is written after each: what is finished is kept, a case that fails is a row."""

import csv
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hsa_factory.doctor.scrub import scrub
from hsa_factory.whole_files import whole_file


OK, NO_MEMORY, NO_TIME, FAILED = "ok", "out of memory", "out of time", "failed"
Row = dict[str, str]


class Budget:
    """Seconds that a part may take."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left; below 0: none."""
        return self._end - time.monotonic()


class Rows:
    """The rows of one part.

    Args:
        path: The CSV; rows of a former run are read.
        keys: Columns that say which case a row is.
        columns: Of what is measured.
        stamp: What else each row says: GPU, versions. A row with another stamp is not finished.
        budget: Of the part.
        again: Whether finished cases are measured anew.
        say: Called with a line for each case.
    """

    def __init__(
        self,
        path: Path,
        keys: tuple[str, ...],
        columns: tuple[str, ...],
        stamp: dict[str, str],
        budget: Budget,
        again: bool,
        say: Callable[[str], None],
    ) -> None:
        self.path, self.keys, self.budget = path, keys, budget
        self._columns = (*keys, "status", *columns, "note", *stamp)
        self._stamp, self._say = stamp, say
        self._rows: dict[tuple[str, ...], Row] = {}
        self._fresh: set[tuple[str, ...]] = set()
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                for former in csv.DictReader(file):
                    row = {name: former.get(name) or "" for name in self._columns}
                    self._rows[self._key(row)] = row
        self._again = again

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def find(self, **case: Any) -> Row | None:
        """Return the row of a case that was measured well; None: there is none."""
        row = self._rows.get(self._key(case))
        return row if row is not None and row["status"] == OK else None

    def is_finished(self, **case: Any) -> bool:
        """Whether a case need not be measured."""
        key = self._key(case)
        if key in self._fresh:
            return True
        row = self._rows.get(key)
        same = row is not None and all(row.get(name) == value for name, value in self._stamp.items())
        return row is not None and same and not self._again and row["status"] in (OK, NO_MEMORY)

    def measure(self, call: Callable[[], dict[str, Any]], expected_s: float = 0.0, **case: Any) -> Row:
        """Measure a case, unless it is finished, and write the file.

        Args:
            call: Measures it; returns what stands in the columns.
            expected_s: Seconds it may take, as far as is known.
            case: Values of the keys.
        """
        key = self._key(case)
        if self.is_finished(**case):
            return self._rows[key]
        values: dict[str, Any] = {}
        if self.budget.left() <= expected_s:
            status, note = NO_TIME, ""
        else:
            status, note, values = _attempt(call)
        row = case | values | {"status": status, "note": note} | self._stamp
        self._rows[key] = {name: _text(row.get(name)) for name in self._columns}
        self._fresh.add(key)
        self._write()
        shown = ", ".join(f"{name} {value}" for name, value in case.items() if value is not None)
        self._say(f"{shown}: {status}{f': {note}' if note else ''}")
        return self._rows[key]

    def _key(self, case: dict[str, Any]) -> tuple[str, ...]:
        return tuple(_text(case.get(key)) for key in self.keys)

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows.values())


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _attempt(call: Callable[[], dict[str, Any]]) -> tuple[str, str, dict[str, Any]]:
    """Return the status, a note and what was measured."""
    try:
        return OK, "", call()
    except (torch.OutOfMemoryError, MemoryError):
        status, note = NO_MEMORY, ""
    except Exception as error:  # one case, not the end: kernels and compilers raise all kinds
        status, note = FAILED, scrub(error)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return status, note, {}
