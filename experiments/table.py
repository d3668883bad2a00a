"""One table: as CSV, and as Markdown."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path


Row = dict[str, str]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Of its file.
        title: What stands above it.
        columns: Headings.
        rows: As many cells as columns each.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def csv(self) -> str:
        """Return it as CSV."""
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return text.getvalue()

    def markdown(self) -> str:
        """Return it as Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def read_rows(file: Path) -> list[Row]:
    """Return the rows of a CSV file by their headings."""
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
