"""Counts of what was done with samples, which add up over chunks."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any, Self

from rich.console import Console

from ..amounts import amount
from ..visible_text import show_hidden


LISTED = 20


@dataclass
class Counts:
    """Counts of one chunk, or of all. A subclass adds fields: numbers, counters, mappings of which the first value stays.

    Attributes:
        samples: Samples read, and not skipped.
        skipped: Samples left out because they cannot be read.
        problems: The first of them: where, and why.
    """

    samples: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)

    def skip(self, problem: str) -> None:
        """Count a sample that is left out."""
        self.skipped += 1
        if len(self.problems) < LISTED:
            self.problems.append(problem)

    def add(self, other: Self) -> None:
        """Add the counts of a chunk."""
        for entry in fields(self):
            own, more = getattr(self, entry.name), getattr(other, entry.name)
            if isinstance(own, Counter):
                own.update(more)
            elif isinstance(own, list):
                own += more[: LISTED - len(own)]
            elif isinstance(own, dict):
                setattr(self, entry.name, more | own)
            else:
                setattr(self, entry.name, own + more)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read back what `to_dict` returned."""
        empty = cls()
        counters = {name: Counter(values[name]) for name, value in vars(empty).items() if isinstance(value, Counter)}
        return cls(**{**values, **counters})

    def check_result(self, inputs: str) -> None:
        """Refuse a result that would be empty.

        Raises:
            ValueError: Naming the input, and why nothing is left.
        """
        if not self.samples:
            why = f": all {self.skipped:,} were left out, first {self.problems[0]}" if self.skipped else ""
            raise ValueError(f"{inputs}: there is no sample{why}.")


def print_notes(console: Console, notes: Counter) -> None:
    """Print what was changed or left out in messages, by what it is."""
    for note, count in notes.items():
        if count:
            console.print(f"{note}: {count:,}", highlight=False, markup=False)


def print_skipped(console: Console, counts: Counts) -> None:
    """Print which samples could not be read."""
    if not counts.skipped:
        return
    console.print(
        f"warning: {amount(counts.skipped, 'sample')} {'was' if counts.skipped == 1 else 'were'} left out:",
        highlight=False,
    )
    for problem in counts.problems:
        console.print(f"  {show_hidden(problem)}", highlight=False, markup=False)
    if counts.skipped > len(counts.problems):
        console.print("  …", highlight=False)
