"""Labelling files of any size: many processes, nothing lost when it is stopped, no half-written result."""

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import strict_json
from .._version import __version__
from ..whole_files import whole_file, write_whole
from .formats import DatasetFormat
from .labeller import SampleLabeller, add_anchor
from .records import CHUNK_BYTES, CHUNK_SAMPLES, SampleChunk
from .rule_set import RuleSet
from .summary import Summary
from .token_counter import TokenCounter, load_tokenizer
from .trajectories.files import read_samples


MANIFEST = "manifest.json"


class BadSample(ValueError):
    """A sample that cannot be labelled."""


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        inputs: Files, or ``-``.
        dataset_format: Of their samples.
        rules: The rules.
        out: The result: ``.json``, ``.jsonl`` or ``.parquet``.
        tokenizer: Counts tokens; None: characters are counted.
        skip_bad: Whether samples that cannot be labelled are left out, and counted, or are an error.
    """

    inputs: tuple[str, ...]
    dataset_format: DatasetFormat
    rules: RuleSet
    out: Path
    tokenizer: str | None = None
    skip_bad: bool = False

    @property
    def directory(self) -> Path:
        """Where finished chunks are kept until the result is whole."""
        return self.out.with_name(f"{self.out.name}.partial")

    @property
    def as_tables(self) -> bool:
        """Whether chunks are tables: columns of a Parquet file then stay what they are in another one."""
        return self.out.suffix == ".parquet" and all(path.endswith(".parquet") for path in self.inputs)

    def fingerprint(self) -> dict[str, Any]:
        """Return all that the chunks depend on; those of another run are used if theirs is the same."""
        stats = [(os.path.abspath(path), os.stat(path)) for path in self.inputs if path != "-"]
        rules = json.dumps(self.rules.to_list(), ensure_ascii=False)
        return {
            "version": __version__,
            "inputs": [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats],
            "rules": hashlib.sha256(rules.encode()).hexdigest(),
            "dataset_format": asdict(self.dataset_format),
            "tables": self.as_tables,
            "tokenizer": self.tokenizer,
            "skip_bad": self.skip_bad,
            "chunks": [CHUNK_SAMPLES, CHUNK_BYTES],
        }


def run_job(
    job: Job, workers: int, on_chunk: Callable[[int, bool], None], chunks: Iterator[SampleChunk] | None = None
) -> Summary:
    """Label all samples and put the result in its place, whole.

    Finished chunks lie in ``OUT.partial`` until then. If that directory is there and was made from the same input with
    the same rules, its chunks are not labelled again.

    Args:
        job: What is to be done.
        workers: Processes; 1: this one.
        on_chunk: Called with the bytes of input done, and whether the chunk was there already.
        chunks: The input, if its beginning has been read already.

    Returns:
        The counts.

    Raises:
        BadSample: If a sample cannot be labelled, unless they are skipped; what is done is kept.
        ValueError: If the input is broken or empty.
    """
    _prepare_directory(job)
    summary = Summary()
    done: list[int] = []
    pool = None
    if workers > 1:
        pool = ProcessPoolExecutor(workers, initializer=_start_process, initargs=(job, os.getpid()))
    else:
        _start_worker(job)
    waiting: deque = deque()
    try:
        for chunk in chunks if chunks is not None else read_samples(job.inputs):
            future = None
            was_there = _summary_path(job, chunk.index).is_file()
            if not was_there:
                if pool is None:
                    _label_chunk(chunk)
                else:
                    future = pool.submit(_label_chunk, chunk)
            waiting.append((chunk.without_samples(), future, was_there))
            if len(waiting) > 2 * workers or pool is None:
                _collect(job, waiting, summary, done, on_chunk)
        while waiting:
            _collect(job, waiting, summary, done, on_chunk)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    if not summary.samples:
        why = f": all {summary.skipped:,} were left out, first {summary.problems[0]}" if summary.skipped else ""
        shutil.rmtree(job.directory)
        raise ValueError(f"{', '.join(job.inputs)}: there is no sample{why}.")

    _assemble(job, [_chunk_path(job, index) for index in done])
    shutil.rmtree(job.directory)
    return summary


def _prepare_directory(job: Job) -> None:
    fingerprint = job.fingerprint()
    manifest = job.directory / MANIFEST
    if job.directory.exists():
        try:
            same = json.loads(manifest.read_text("utf-8")) == fingerprint and "-" not in job.inputs
        except (OSError, ValueError):
            same = False
        if same:
            return
        shutil.rmtree(job.directory)
    job.directory.mkdir(parents=True)
    write_whole(manifest, json.dumps(fingerprint))


def _collect(
    job: Job, waiting: deque, summary: Summary, done: list[int], on_chunk: Callable[[int, bool], None]
) -> None:
    """Take the oldest chunk's counts in."""
    chunk, future, was_there = waiting.popleft()
    if future is not None:
        future.result()
    values = json.loads(_summary_path(job, chunk.index).read_text("utf-8"))
    summary.add(Summary.from_dict(values))
    done.append(chunk.index)
    on_chunk(chunk.bytes_read, was_there)


def _chunk_path(job: Job, index: int) -> Path:
    return job.directory / f"{index:07d}.{'parquet' if job.as_tables else 'jsonl'}"


def _summary_path(job: Job, index: int) -> Path:
    return job.directory / f"{index:07d}.summary.json"


# -- in a worker -----------------------------------------------------------------------------------------------


_worker: tuple[Job, SampleLabeller]  # set when the process starts


def _start_worker(job: Job) -> None:
    global _worker
    count = TokenCounter(load_tokenizer(job.tokenizer)) if job.tokenizer is not None else None
    _worker = (job, SampleLabeller(job.dataset_format, job.rules, count))


def _start_process(job: Job, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the others
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _start_worker(job)


def _end_with(parent: int) -> None:
    """End this process when its parent was killed, which could not do it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _label_chunk(chunk: SampleChunk) -> None:
    """Label a chunk and write it, then its counts: a chunk with counts is whole."""
    job, labeller = _worker
    summary, kept, samples = Summary(), [], []
    rows = chunk.samples if isinstance(chunk.samples, list) else chunk.samples.to_pylist()
    for number, row in enumerate(rows):
        try:
            samples.append(labeller.label(parse_sample(row), summary, chunk.where(number)))
            kept.append(number)
        except (ValueError, RecursionError) as error:
            problem = f"{chunk.where(number)}: {error or 'nested too deeply'}"
            if not job.skip_bad:
                raise BadSample(problem) from None
            summary.skip(problem)
    if chunk.index == 0 and samples and any(rule.types_parts for rule in job.rules):
        add_anchor(samples[0], job.dataset_format)

    path = _chunk_path(job, chunk.index)
    if job.as_tables:
        from .columns import labelled_table, write_table

        with whole_file(path) as partial:
            write_table(labelled_table(chunk.samples, kept, samples, job.dataset_format), partial)
    else:
        write_whole(path, b"".join(map(_dump, samples)))
    write_whole(_summary_path(job, chunk.index), json.dumps(summary.to_dict()))


def parse_sample(row: Any) -> Any:
    """Return a sample of a chunk as plain values.

    Raises:
        ValueError: If it is not JSON in UTF-8, or a key stands twice.
    """
    if not isinstance(row, bytes):
        return row
    try:
        return strict_json.loads(row.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from None


def _dump(sample: dict[str, Any]) -> bytes:
    return json.dumps(sample, ensure_ascii=False, default=_refuse).encode() + b"\n"


def _refuse(value: Any) -> None:
    raise ValueError(f"JSON cannot hold a value of type {type(value).__name__}; choose a .parquet output.")


# -- the result ------------------------------------------------------------------------------------------------


def _assemble(job: Job, chunks: Sequence[Path]) -> None:
    """Join the chunks beside the result, then put it in its place."""
    with whole_file(job.out, job.directory / "result") as partial:
        if job.out.suffix == ".parquet":
            from .columns import join_tables, read_lines, write_rows

            if job.as_tables:
                join_tables(chunks, partial)
            else:
                write_rows(lambda: read_lines(chunks), partial)
        else:
            with open(partial, "wb") as result:
                result.writelines(_as_list(chunks) if job.out.suffix == ".json" else _as_lines(chunks))


def _as_lines(chunks: Sequence[Path]) -> Iterator[bytes]:
    for path in chunks:
        yield path.read_bytes()


def _as_list(chunks: Sequence[Path]) -> Iterator[bytes]:
    before = b"[\n"
    for path in chunks:
        text = path.read_bytes().rstrip(b"\n")
        if text:
            yield before + text.replace(b"\n", b",\n")
            before = b",\n"
    yield b"\n]\n"
