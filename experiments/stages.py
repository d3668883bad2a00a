"""Stages: each a folder that is finished once and for all, whatever is killed meanwhile."""

import hashlib
import importlib.metadata
import json
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from hsa_factory.whole_files import write_whole

from .reading import read_or_none


DONE, FAILED = "stage.json", "failed.json"
PACKAGES = ("hsa-factory", "llamafactory", "torch", "transformers", "textworld-express", "minigrid", "scipy")

Result = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A part of the experiment.

    Attributes:
        name: With slashes; the same in every form of the experiment.
        work: Does it, in a folder; is given the folders of what it needs, by name, and returns what is to be known of it.
        settings: All that decides the result, as plain values, besides what it needs.
        needs: Stages that must be finished.
        goes_on: Whether its work goes on with what a killed run has left in the folder; else that is removed first.
    """

    name: str
    work: Callable[[Path, Mapping[str, Path]], Result]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple["Stage", ...] = ()
    goes_on: bool = False

    @cached_property
    def key(self) -> str:
        """What tells it from the same stage with other settings, here or in what it needs."""
        content = [self.name, self.settings, [stage.key for stage in self.needs]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def folder(self, out: Path) -> Path:
        """Return where it lies; stages with other settings lie elsewhere."""
        return out / "stages" / f"{self.name.replace('/', '.')}-{self.key}"

    def is_done(self, out: Path) -> bool:
        """Whether it is finished."""
        return self.record(out) is not None

    def is_broken(self, out: Path) -> bool:
        """Whether what says that it is finished is there and cannot be read: then it is done anew."""
        return (self.folder(out) / DONE).exists() and not self.is_done(out)

    def record(self, out: Path) -> dict[str, Any] | None:
        """Return what was written when it was finished; None: it is not, or that cannot be read."""
        found = read_or_none(self.folder(out) / DONE)
        return found if found is not None and "result" in found else None

    def result(self, out: Path) -> Result | None:
        """Return what its work has returned; None: it is not finished."""
        record = self.record(out)
        return None if record is None else record["result"]

    def failure(self, out: Path) -> dict[str, Any] | None:
        """Return why it failed the last time, if it did and is not finished."""
        return None if self.is_done(out) else read_or_none(self.folder(out) / FAILED)


def run_stage(stage: Stage, out: Path) -> Result:
    """Do a stage's work in this process, unless it is finished, and return its result.

    A process that is at work on it is waited for. What a killed run has left in the folder is removed first, unless the
    stage goes on with it. The file that says that it is finished is written last, and as a whole.

    Raises:
        ValueError: If something that it needs is not finished.
    """
    missing = [need.name for need in stage.needs if not need.is_done(out)]
    if missing:
        raise ValueError(f"{stage.name} needs {', '.join(missing)}, not finished in {out}.")
    folder = stage.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # a killed run may have left a process at work on it
        done = stage.result(out)
        if done is not None:
            return done
        failures = failures_of(stage, out)
        if not stage.goes_on:
            _clear(folder)
        return _work(stage, folder, {need.name: need.folder(out) for need in stage.needs}, failures)


def _work(stage: Stage, folder: Path, needs: Mapping[str, Path], failures: int) -> Result:
    started, used = time.time(), cpu_seconds()
    try:
        result = stage.work(folder, needs)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        write_whole(folder / FAILED, json.dumps({"key": stage.key, "error": text, "failures": failures + 1}, indent=1))
        raise
    record = {
        "name": stage.name,
        "key": stage.key,
        "settings": stage.settings,
        "needs": [need.key for need in stage.needs],
        "finished": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "seconds": round(time.time() - started, 1),
        "cpu_seconds": round(cpu_seconds() - used, 1),
        "failures": failures,
        **provenance(),
        "result": result,
    }
    write_whole(folder / DONE, json.dumps(record, indent=1, default=str))
    (folder / FAILED).unlink(missing_ok=True)
    return result


def failures_of(stage: Stage, out: Path) -> int:
    """Return how often a stage that is not finished has failed so far."""
    return int((read_or_none(stage.folder(out) / FAILED) or {}).get("failures", 0))


def note_failure(stage: Stage, out: Path, error: str, before: int = 0) -> None:
    """Record that a stage has failed, unless it has said so itself: a process that was killed cannot.

    Args:
        stage: Which.
        out: Folder of the results.
        error: What is known of it.
        before: How often it had failed before this time.
    """
    if failures_of(stage, out) <= before:
        content = {"key": stage.key, "error": error, "failures": before + 1}
        write_whole(stage.folder(out) / FAILED, json.dumps(content, indent=1))


def cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended, in seconds."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def provenance() -> dict[str, Any]:
    """Return the git revision, versions and machine."""
    return {
        "git": git_revision(),
        "python": platform.python_version(),
        "versions": installed_versions(),
        "machine": platform.machine(),
    }


def installed_versions() -> dict[str, str]:
    """Return the versions of `PACKAGES`, as far as they are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_revision() -> str:
    """Return the revision of the code at work, with ``+`` if files were changed since; ``unknown`` outside git."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in ("log.txt", FAILED):  # which this process may be writing; which counts
            shutil.rmtree(path) if path.is_dir() else path.unlink()
