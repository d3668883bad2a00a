"""What each process has spent on a piece of work that may be killed and taken up by another."""

import json
import threading
import time
from pathlib import Path
from typing import Any, Self

from hsa_factory.whole_files import write_whole

from .reading import read_json
from .stages import provenance


EVERY = 5.0
"""Seconds between two notes: a process that is killed cannot say at its end what it has spent."""


class Parts:
    """Notes the processor time of this process, again and again, behind that of the processes before it.

    Args:
        file: Where it stands.
        device: On which this process works.
        every: Seconds between two notes.
    """

    def __init__(self, file: Path, device: str = "CPU", every: float = EVERY) -> None:
        self.file, self.every = file, every
        self._before: list[dict[str, Any]] = read_json(file) if file.is_file() else []
        self._made_with = {"device": device, **provenance()}
        self._ended = threading.Event()
        self._noting = threading.Thread(target=self._note_again_and_again, daemon=True)

    def __enter__(self) -> Self:
        self._started = time.process_time()
        self._note()
        self._noting.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._noting.join()
        self._note()

    @property
    def all(self) -> list[dict[str, Any]]:
        """The parts so far, each with ``cpu_seconds``, ``device``, git revision and versions; this process's is the last."""
        return [*self._before, {"cpu_seconds": round(time.process_time() - self._started, 1), **self._made_with}]

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all parts, in seconds."""
        return float(round(sum(part["cpu_seconds"] for part in self.all), 1))

    def _note(self) -> None:
        write_whole(self.file, json.dumps(self.all, indent=1))

    def _note_again_and_again(self) -> None:
        while not self._ended.wait(self.every):
            self._note()
