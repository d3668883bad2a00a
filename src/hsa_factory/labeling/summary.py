"""What labelling did, in numbers that add up over chunks."""

from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..amounts import amount
from ..semantics import SemanticType
from ..visible_text import show_hidden_line
from .counts import Counts, print_notes, print_skipped
from .matching import Message, MessageTypes
from .rule_set import RuleSet


KINDS = (*SemanticType.__members__, "default")


@dataclass
class Summary(Counts):
    """Counts of what labelling did.

    Attributes:
        given: Messages that came with types of their own.
        ruled: Other messages that rules typed.
        untyped: Messages that nothing types.
        matches: How often each rule decided, by name.
        amounts: Characters or tokens by type's name; ``default`` for those that nothing types.
        notes: What was changed or left out to make samples readable, by what it is.
        untrained: Samples written that training is going to leave out, by the reason.
        first_untrained: The first of each.
    """

    given: int = 0
    ruled: int = 0
    untyped: int = 0
    matches: Counter = field(default_factory=Counter)
    amounts: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)
    untrained: Counter = field(default_factory=Counter)
    first_untrained: dict[str, str] = field(default_factory=dict)

    @property
    def messages(self) -> int:
        """All messages."""
        return self.given + self.ruled + self.untyped

    def add_message(self, message: Message, typing: MessageTypes) -> None:
        """Count one message."""
        if message.semantic_type is not None or message.spans:
            self.given += 1
        elif typing.semantic_type is not None or typing.spans:
            self.ruled += 1
        else:
            self.untyped += 1

    def leave_out(self, reason: str, where: str) -> None:
        """Count a sample that training is going to leave out."""
        self.untrained[reason] += 1
        self.first_untrained.setdefault(reason, where)


def print_summary(console: Console, summary: Summary, rules: RuleSet, unit: str) -> None:
    """Print what was done, the rules with their counts, and what needs a second look.

    Args:
        console: Where to.
        summary: The counts.
        rules: In the order they are listed.
        unit: What `amounts` count.
    """
    total = sum(summary.amounts.values())
    console.print(
        f"{amount(summary.samples, 'sample')}, {amount(summary.messages, 'message')}: {summary.ruled:,} typed by rules, "
        f"{summary.given:,} with types of their own, {summary.untyped:,} without a type",
        highlight=False,
    )
    shares = [
        f"{kind} {summary.amounts[kind]:,} ({summary.amounts[kind] / total:.1%})"
        for kind in KINDS
        if summary.amounts[kind]
    ]
    console.print(f"{total:,} {unit}: {', '.join(shares) or 'none'}", highlight=False)

    print_notes(console, summary.notes)
    table = Table(title="rules", title_justify="left")
    table.add_column("rule", overflow="fold")
    table.add_column("type")
    table.add_column("decided", justify="right")
    for rule in rules:
        count = summary.matches[rule.name]
        table.add_row(
            Text(show_hidden_line(rule.name)), rule.type.name, f"{count:,}", style=None if count else "yellow"
        )
    console.print(table)
    unmatched = [rule.name for rule in rules if not summary.matches[rule.name]]
    if unmatched:
        listed = ", ".join(map(repr, unmatched))
        console.print(f"warning: these rules never matched: {listed}", highlight=False, markup=False)
    if summary.untrained:
        count = summary.untrained.total()
        console.print(f"warning: training will leave out {amount(count, 'sample')}:", highlight=False)
        for reason, count in summary.untrained.items():
            first = summary.first_untrained[reason]
            console.print(f"  {count:,}: {reason} (first: {first})", highlight=False, markup=False)
    print_skipped(console, summary)
