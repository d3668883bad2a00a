"""What became of feedback, in numbers that add up over chunks."""

from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console

from ..amounts import amount
from ..labeling.counts import Counts, print_notes, print_skipped


@dataclass
class PairCounts(Counts):
    """Counts of samples, their feedback and the pairs made of it.

    Attributes:
        unmarked: Samples without a marker that counts.
        messages: Messages read.
        feedback: Feedback turns in all samples.
        pairs: Pairs made of them.
        left_out: The others, by the reason.
        first_left_out: Where the first of each stands.
        notes: What was changed so that the samples can be read whole, by what it is.
    """

    unmarked: int = 0
    messages: int = 0
    feedback: int = 0
    pairs: int = 0
    left_out: Counter = field(default_factory=Counter)
    first_left_out: dict[str, str] = field(default_factory=dict)
    notes: Counter = field(default_factory=Counter)

    def leave_out(self, reason: str, where: str) -> None:
        """Count feedback that becomes no pair."""
        self.left_out[reason] += 1
        self.first_left_out.setdefault(reason, where)

    def check_result(self, inputs: str) -> None:
        """Refuse a result without pairs.

        Raises:
            ValueError: Naming the input, and why there are none.
        """
        super().check_result(inputs)
        if self.pairs:
            return
        if not self.feedback:
            raise ValueError(
                f"{inputs}: there is no feedback in {amount(self.samples, 'sample')}, so there are no pairs. Is it another "
                "--token, or another --scope?"
            )
        all_of_it = (
            "the only feedback turn was" if self.feedback == 1 else f"all {self.feedback:,} feedback turns were"
        )
        raise ValueError(
            f"{inputs}: there are no pairs, as {all_of_it} left out: "
            + "; ".join(
                f"{count:,}: {reason} (first: {self.first_left_out[reason]})" for reason, count in self._reasons()
            )
        )

    def _reasons(self) -> list[tuple[str, int]]:
        return self.left_out.most_common()


def print_pair_counts(console: Console, counts: PairCounts, token: str) -> None:
    """Print how many pairs were made, and what became no pair."""
    unmarked = f", {counts.unmarked:,} of them without {token}" if counts.unmarked else ""
    console.print(
        f"{amount(counts.samples, 'sample')}{unmarked}; {amount(counts.messages, 'message')}, "
        f"{amount(counts.feedback, 'feedback turn')}: {amount(counts.pairs, 'pair')}",
        highlight=False,
        markup=False,
    )
    print_notes(console, counts.notes)
    if counts.left_out:
        console.print(f"{amount(counts.left_out.total(), 'feedback turn')} became no pair:", highlight=False)
        for reason, count in counts.left_out.most_common():
            first = counts.first_left_out[reason]
            console.print(f"  {count:,}: {reason} (first: {first})", highlight=False, markup=False)
    print_skipped(console, counts)
