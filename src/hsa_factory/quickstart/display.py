"""What the quickstart shows: one line a run while it trains, tables and a plot at the end."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..visible_text import show_hidden_line


AVERAGED = 3
"""How many logged losses at either end of a run are averaged."""

REQUIRED_FALL = 1 / 3
"""How far the loss must fall, as a share of what it was at first."""


@dataclass
class Outcome:
    """What came of one run.

    Attributes:
        name: Name of the run.
        title: What people call it.
        losses: Every logged loss.
        seconds: Time from start to end of the process.
        trained, total: Numbers of parameters; None if the log does not say.
        report: The content of ``hsa_report.json``.
    """

    name: str
    title: str
    losses: list[float]
    seconds: float
    trained: int | None
    total: int | None
    report: dict[str, Any]

    @property
    def first(self) -> float:
        """Mean of the first logged losses."""
        return _mean(self.losses[:AVERAGED])

    @property
    def last(self) -> float:
        """Mean of the last logged losses."""
        return _mean(self.losses[-AVERAGED:])

    @property
    def fall(self) -> float:
        """By what share of its first value the loss fell; NaN if a loss is missing or not finite."""
        return 1 - self.last / self.first if self.first else math.nan

    @property
    def learnt(self) -> bool:
        """Whether the loss fell far enough."""
        return self.fall >= REQUIRED_FALL  # False for NaN


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read ``trainer_log.jsonl`` as far as it is written; a line still being written is left for the next time."""
    if not path.is_file():
        return []

    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return [entry for entry in entries if "loss" in entry]


def progress_display(console: Console) -> Progress:
    """Return the display; a task's fields are `step`, `loss` and `note`."""
    return Progress(
        TextColumn("{task.description:<18}"),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[step]:>11}"),
        TextColumn("{task.fields[loss]:>10}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def _table(title: str, subject: str, headings: tuple[str, ...]) -> Table:
    """Return an empty table without lines, so that all of it fits into 80 columns."""
    table = Table(
        title=title, title_justify="left", title_style="bold", header_style="dim", box=None, padding=(0, 2, 0, 0)
    )
    table.add_column(subject, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def run_table(outcomes: list[Outcome]) -> Table:
    """Lay out the runs, one a row."""
    headings = ("first → last", "fall", "steps", "seconds", "trained parameters")
    table = _table(f"Loss, mean of the first {AVERAGED} and the last {AVERAGED} steps", "run", headings)

    for outcome in outcomes:
        parameters = "unknown"
        if outcome.trained is not None and outcome.total:
            parameters = f"{outcome.trained:,} ({outcome.trained / outcome.total:.0%})"
        table.add_row(
            outcome.title,
            f"{outcome.first:.2f} → {outcome.last:.2f}",
            f"[{'green' if outcome.learnt else 'red'}]{outcome.fall:.0%}[/]",
            str(len(outcome.losses)),
            f"{outcome.seconds:.0f}",
            parameters,
        )
    return table


def data_table(outcomes: list[Outcome]) -> Table:
    """Lay out what HSA and Feedback made of each data set, one a row; runs that share it count once."""
    headings = ("samples", "feedback", "dropped", "GLOBAL", "LANDMARK", "NOISE", "trained")
    table = _table("Data: samples, types of their tokens, share of them that is trained", "dataset", headings)
    datasets = {name: account for outcome in outcomes for name, account in outcome.report.get("datasets", {}).items()}
    for name, account in datasets.items():
        tokens = account["tokens"]
        total = max(sum(tokens.values()), 1)
        table.add_row(
            Text(show_hidden_line(name)),
            str(account["samples"]),
            str(account["with_marker"]),
            str(sum(account["dropped"].values())),
            *(f"{tokens[kind] / total:.0%}" for kind in ("GLOBAL", "LANDMARK", "NOISE")),
            f"{account['trained_share']:.0%}",
        )
    return table


def plot_losses(outcomes: list[Outcome], path: Path) -> None:
    """Draw the loss curves into one picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for outcome in outcomes:
        style = "--" if "LoRA" in outcome.title else "-"
        axes.plot(range(1, len(outcome.losses) + 1), outcome.losses, style, label=outcome.title)
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None), title="HSA + Feedback on tiny models")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
