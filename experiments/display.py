"""How far a run is: a bar in a terminal, lines in a log."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .plan import Plan
from .runner import Outcome, Watcher
from .stages import Stage


@contextmanager
def progress_of(plan: Plan, out: Path) -> Iterator[Watcher]:
    """Yield what a `Runner` calls to show how far it is.

    Args:
        plan: Whose parts run.
        out: Folder of the results, where trainings say how far they are.
    """
    if not sys.stdout.isatty():
        yield Lines(len(plan.stages))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console()) as progress:
        task = progress.add_task("experiments", total=len(plan.stages))

        def watch(outcome: Outcome, running: Sequence[Stage]) -> None:
            done = len(outcome.done) + len(outcome.found)
            names = ", ".join(f"{stage.name}{how_far(stage.folder(out))}" for stage in running)
            failed = f" [red]{len(outcome.failed)} failed[/]" if outcome.failed else ""
            progress.update(task, completed=done, description=f"{names or 'experiments'}{failed}")

        yield watch


def how_far(folder: Path) -> str:
    """Return how far a training is, to stand behind its name; empty: it has not begun, or is none."""
    logs = sorted(folder.glob("*/trainer_log.jsonl"), key=lambda log: log.stat().st_mtime)
    for log in reversed(logs):
        lines = [line for line in log.read_text("utf-8").splitlines() if line.endswith("}")]
        if lines:
            found = json.loads(lines[-1])
            return f" ({log.parent.name}: step {found['current_steps']} of {found['total_steps']})"
    return ""


class Lines:
    """Writes a line when a stage begins or ends.

    Args:
        total: Number of stages.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._known: set[str] = set()
        self._ended: set[str] = set()

    def __call__(self, outcome: Outcome, running: Sequence[Stage]) -> None:
        """Show what is new."""
        done = len(outcome.done) + len(outcome.found)
        for verb, names in (("done", outcome.done), ("FAILED", outcome.failed), ("left out", outcome.skipped)):
            for name in names:
                if name not in self._ended:
                    self._ended.add(name)
                    self._say(done, f"{name} {verb}")
        for stage in running:
            if stage.name not in self._known:
                self._known.add(stage.name)
                self._say(done, f"{stage.name} …")

    def _say(self, done: int, what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} [{done}/{self.total}] {what}", flush=True)
