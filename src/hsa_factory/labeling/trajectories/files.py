"""Files that are one sample: sessions (an event a line) and documents (one JSON object over many lines)."""

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..records import CHUNK_BYTES, CHUNK_SAMPLES, SampleChunk, read_chunks
from .sessions import EVENTS_KEY, is_event, is_header


TRAJECTORY_SUFFIXES = (".traj", ".traj.json", ".jsonl", ".json")  # of files in a directory of trajectories
_HEAD = 20  # lines of a file that are looked at
_LONGEST_HEAD = 4 << 20  # bytes
_LARGEST_DOCUMENT = 256 << 20


@dataclass(frozen=True)
class FileChunk(SampleChunk):
    """Samples that are files or parts of files each; `names` says where each comes from."""

    names: tuple[str, ...] = ()

    def where(self, number: int) -> str:
        """Say where a sample of the chunk stands."""
        return self.names[number]


def read_samples(paths: Sequence[str]) -> Iterator[SampleChunk]:
    """Read files one after another, or standard input (``-``), as `read_chunks` does; sessions and documents as one sample.

    Raises:
        ValueError: As `read_chunks`, and if a line of a session is not JSON.
        FileNotFoundError: If there is no such file.
    """
    index = before = 0
    waiting: list[tuple[str, bytes]] = []
    for number, path in enumerate(paths):
        size = Path(path).stat().st_size if path != "-" else 0
        whole = _whole_samples(path) if path != "-" and not path.endswith(".parquet") else None
        if whole is not None:
            waiting += whole
            before += size
        is_full = len(waiting) >= CHUNK_SAMPLES or sum(len(sample) for _, sample in waiting) >= CHUNK_BYTES
        if waiting and (whole is None or is_full or number == len(paths) - 1):
            names, samples = zip(*waiting)
            yield FileChunk(index, list(samples), (), "file", before, names)
            index, waiting = index + 1, []
        if whole is None:
            several = len(paths) > 1
            for chunk in read_chunks([path]):
                unit = f"{path}, {chunk.unit}" if several else chunk.unit
                yield replace(chunk, index=index, unit=unit, bytes_read=before + chunk.bytes_read)
                index += 1
            before += size


def _whole_samples(path: str) -> list[tuple[str, bytes]] | None:
    """Return the samples of a file of sessions, or the one of a document, named; None: it is neither."""
    with open(path, "rb") as file:
        head = file.read(_LONGEST_HEAD).removeprefix(codecs.BOM_UTF8)
    if not head.lstrip().startswith(b"{"):
        return None
    lines = head.lstrip().split(b"\n", _HEAD)
    if len(lines) > 1 and _parse(lines[0]) is None:
        return _document(path)
    if _begins_session(list(map(_parse, lines[:_HEAD]))):
        return _sessions(path)
    return None


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _begins_session(lines: list[Any]) -> bool:
    """Whether lines are events: a header first, or messages in envelopes among what has neither messages nor texts."""
    samples = ("messages", "conversations", "trajectory", "instruction", "prompt")
    known = [line for line in lines if isinstance(line, dict)]
    if not known or any(name in line for line in known for name in samples):
        return False
    return is_header(known[0]) or any(is_event(line) and not is_header(line) for line in known)


def _document(path: str) -> list[tuple[str, bytes]] | None:
    """Return a file that is one JSON object; None: it is broken, or lines with a broken one first."""
    if Path(path).stat().st_size > _LARGEST_DOCUMENT:
        return None
    content = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
    return [(path, content)] if isinstance(_parse(content), dict) else None


def _sessions(path: str) -> list[tuple[str, bytes]]:
    """Return the sessions in a file, each the JSON of its events; a header begins the next one."""
    sessions: list[list[bytes]] = [[]]
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            event = _parse(line)
            if event is None:
                raise ValueError(f"{path}, line {number}: a session's event that is not JSON.")
            if sessions[-1] and isinstance(event, dict) and is_header(event):
                sessions.append([])
            sessions[-1].append(line.strip())
    name = json.dumps(Path(path).name).encode()
    key = json.dumps(EVENTS_KEY).encode()
    samples = [b'{"session": ' + name + b", " + key + b": [" + b",".join(events) + b"]}" for events in sessions]
    return [(f"{path}, session {number}" if len(samples) > 1 else path, s) for number, s in enumerate(samples)]
