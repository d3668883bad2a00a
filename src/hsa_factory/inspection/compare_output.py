"""What changes between two ways to prepare the data: as text, as JSON, as a page."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TextIO

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.text import Text

from ..amounts import amount
from ..semantics import SemanticType
from ..visible_text import escape_hidden, show_hidden, show_hidden_line
from .compare import ASPECTS, MessageChange, Run, SampleChange
from .terminal import COLOURS


_LONGEST = 200  # characters of a run that are shown in the terminal


class ChangeSummary:
    """What changed in all samples together.

    Attributes:
        compared: Samples that were.
        tokens: Their tokens.
        counts: How many tokens changed, by aspect, and of all.
        types: By (type before, type after).
        visibility: Tokens seen by more, fewer, or others.
        in_name_only: Tokens that more, or fewer, see in name only.
        decays: Tokens that fade faster, or more slowly.
        labels: Tokens that are trained now, or no longer.
        weights: Trained tokens that count more, or less.
        others: Lines about samples that were not compared.
    """

    def __init__(self) -> None:
        self.compared = self.tokens = 0
        self.counts: Counter = Counter()
        self.types: Counter = Counter()
        self.visibility: Counter = Counter()
        self.in_name_only: Counter = Counter()
        self.decays: Counter = Counter()
        self.labels: Counter = Counter()
        self.weights: Counter = Counter()
        self.others: list[str] = []

    def add(self, change: SampleChange) -> None:
        """Count a sample."""
        if change.obstacle:
            self.others.append(f"{change.dataset}, sample {change.name}: not compared, {change.obstacle}.")
            return
        self.compared += 1
        self.tokens += change.length
        self.counts.update(change.counts)
        for run in (run for message in change.messages for run in message.runs):
            if "type" in run.aspects:
                self.types[run.types] += len(run.tokens)
            if "label" in run.aspects:
                self.labels["no longer trained" if run.trained[0] else "trained now"] += len(run.tokens)
            if "visibility" in run.aspects:
                for before, after in run.seen_by:
                    self.visibility["more" if after > before else "fewer" if after < before else "other"] += 1
            for before, after in run.in_name_only:
                if before != after:
                    self.in_name_only["more" if after > before else "fewer"] += 1
            if "decay" in run.aspects:
                self.decays["faster" if run.decays[1] > run.decays[0] else "more slowly"] += len(run.tokens)
            if "weight" in run.aspects:
                self.weights["more" if run.weights[1] > run.weights[0] else "less"] += len(run.tokens)

    def lines(self) -> list[str]:
        """Say it."""
        if not self.compared:
            return self.others
        total = f"{self.counts['tokens']:,} of {self.tokens:,} tokens change in {amount(self.compared, 'sample')}"
        parts = [
            f"{SemanticType(before).name} → {SemanticType(after).name} {count:,}"
            for (before, after), count in self.types.most_common()
        ]
        parts += [f"seen by {how} tokens {count:,}" for how, count in self.visibility.most_common()]
        parts += [f"in name only by {how} tokens {count:,}" for how, count in self.in_name_only.most_common()]
        parts += [f"fading {how} {count:,}" for how, count in self.decays.most_common()]
        parts += [f"{how} {count:,}" for how, count in self.labels.most_common()]
        parts += [f"weighing {how} {count:,}" for how, count in self.weights.most_common()]
        return [f"{total}: {', '.join(parts)}." if parts else f"{total}.", *self.others]


def write_text(out: TextIO, changes: Iterable[SampleChange], names: Sequence[str], summary: ChangeSummary) -> None:
    """Write changes for a terminal: messages, and in them the runs of tokens that change."""
    console = Console(file=out, highlight=False)
    _say(console, f"{names[0]} → {names[1]}")
    for change in changes:
        summary.add(change)
        if not change.obstacle:
            _say(console, sample_line(change), "bold")
        for message in change.messages:
            _say(console, f"── {message_line(message)}", "bold blue")
            for run in message.runs:
                text = run.text if len(run.text) <= _LONGEST else f"{run.text[:_LONGEST]} […]"
                shown = show_hidden_line(text.replace("\n", "↵"))
                console.print(Text(f"   {run.describe()}: ").append(shown, _style(run)), soft_wrap=True)
    for line in summary.lines():
        _say(console, line, "bold")


def write_json(out: TextIO, changes: Iterable[SampleChange], summary: ChangeSummary) -> None:
    """Write one object a sample."""
    for change in changes:
        summary.add(change)
        print(escape_hidden(json.dumps(change.to_dict(), ensure_ascii=False)), file=out)


def write_page(out: TextIO, changes: Iterable[SampleChange], names: Sequence[str], summary: ChangeSummary) -> None:
    """Write a page that needs nothing but a browser, and no script."""
    samples = []
    for change in changes:
        summary.add(change)
        if not change.obstacle and change.messages:
            samples.append(
                {
                    "title": show_hidden_line(sample_line(change)),
                    "messages": [
                        {
                            "title": message_line(message),
                            "runs": [
                                {"text": show_hidden(run.text), "what": run.describe(), "type": run.types[1]}
                                for run in message.runs
                            ],
                        }
                        for message in change.messages
                    ],
                }
            )
    environment = Environment(
        loader=PackageLoader("hsa_factory.inspection", "html"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("compare.html").generate(
        names=list(map(show_hidden_line, names)),
        lines=list(map(show_hidden_line, summary.lines())),
        samples=samples,
        style=PackageLoader("hsa_factory.inspection", "html").get_source(environment, "style.css")[0],
    )
    out.writelines(page)


def sample_line(change: SampleChange) -> str:
    """Return the head of a sample."""
    parts = ", ".join(f"{name} {change.counts[name]:,}" for name in ASPECTS)
    head = f"{change.dataset}, sample {change.name}"
    return f"{head}: {change.counts['tokens']:,} of {change.length:,} tokens change ({parts})"


def message_line(message: MessageChange) -> str:
    """Return the head of a message."""
    turn = message.turn
    number = "" if turn.message is None else f" {turn.message}"
    total = turn.stop - turn.start
    return f"message{number}, {turn.role}, turn {turn.number}: {message.changed:,} of {total:,} tokens"


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(Text(show_hidden_line(line), style), soft_wrap=True)


def _style(run: Run) -> str:
    return COLOURS[SemanticType(run.types[1])]
