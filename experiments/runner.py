"""Runs stages in processes of their own, several at once, and goes on where a former run has stopped."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hsa_factory.whole_files import write_whole

from .command_line import only_run_in
from .notices import settings_file
from .plan import Plan
from .stages import Stage, failures_of, note_failure


POLL = 0.2  # seconds
PATIENCE = 10  # seconds
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # so small matrices gain nothing from more
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


@dataclass
class Outcome:
    """What a run has come to.

    Attributes:
        done: Stages finished in this run.
        found: Stages that were finished before.
        failed: Stages that ended with an error.
        skipped: Stages that need one of these.
    """

    done: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


Watcher = Callable[[Outcome, Sequence[Stage]], None]


class Runner:
    """All stages of a plan.

    Args:
        plan: What is to be run.
        out: Folder of the results.
        jobs: How many stages at once, a thread each.
        watch: Called again and again, with what is done and what is running.
    """

    def __init__(self, plan: Plan, out: Path, jobs: int = 1, watch: Watcher | None = None) -> None:
        self.plan, self.out, self.jobs = plan, out, jobs
        self.watch = watch or (lambda outcome, running: None)
        self.outcome = Outcome()
        self._running: dict[str, tuple[Stage, subprocess.Popen[bytes]]] = {}
        self._failed_before: dict[str, int] = {}

    def run(self) -> Outcome:
        """Run until nothing is left to do.

        Raises:
            UserError: If another run is at work in the folder.
        """
        with only_run_in(self.out):
            settings = settings_file(self.plan, self.out)
            write_whole(settings, json.dumps(self.plan.settings.to_dict(), indent=1))
            try:
                self._run_all(settings)
            finally:
                self._stop_all()
        return self.outcome

    def _run_all(self, settings: Path) -> None:
        waiting = []
        for stage in self.plan.stages:
            if stage.is_done(self.out):
                self.outcome.found.append(stage.name)
            else:
                waiting.append(stage)
        while waiting or self._running:
            self._collect()
            waiting = self._skip(waiting)
            for stage in list(waiting):
                if len(self._running) < self.jobs and all(need.is_done(self.out) for need in stage.needs):
                    waiting.remove(stage)
                    self._start(stage, settings)
            self.watch(self.outcome, [stage for stage, _ in self._running.values()])
            if self._running:
                time.sleep(POLL)

    def _skip(self, waiting: list[Stage]) -> list[Stage]:
        """Leave out stages that need something that has failed, or is left out itself."""
        kept = []
        for stage in waiting:
            lost = {*self.outcome.failed, *self.outcome.skipped}
            if any(need.name in lost for need in stage.needs):
                self.outcome.skipped.append(stage.name)
            else:
                kept.append(stage)
        return kept

    def _start(self, stage: Stage, settings: Path) -> None:
        folder = stage.folder(self.out)
        folder.mkdir(parents=True, exist_ok=True)
        self._failed_before[stage.name] = failures_of(stage, self.out)
        worker = [sys.executable, "-m", "experiments.worker"]
        command = [*worker, str(self.out.resolve()), str(settings.resolve()), stage.name, str(os.getpid())]
        with (folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[1], env=_environment()
            )
        self._running[stage.name] = (stage, process)

    def _collect(self) -> None:
        for name, (stage, process) in list(self._running.items()):
            if process.poll() is not None:
                del self._running[name]
                done = stage.is_done(self.out)
                if not done:
                    error = f"its process ended with {process.returncode}, see log.txt"
                    note_failure(stage, self.out, error, self._failed_before.get(name, 0))
                (self.outcome.done if done else self.outcome.failed).append(name)

    def _stop_all(self) -> None:
        for _, process in self._running.values():
            process.terminate()
        for _, process in self._running.values():
            try:
                process.wait(timeout=PATIENCE)
            except subprocess.TimeoutExpired:  # a process that is stopped does not hear
                process.kill()
                process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT}
