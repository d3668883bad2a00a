"""Work on samples of files of any size: many processes, nothing lost when it is stopped, no half-written result."""

import json
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .. import strict_json
from .._version import __version__
from ..whole_files import whole_file, write_whole
from .counts import Counts
from .records import CHUNK_BYTES, CHUNK_SAMPLES, SampleChunk
from .trajectories.files import read_samples


if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"


class Work(Protocol):
    """What is done with samples, in one process."""

    def process(self, sample: Any, counts: Any, where: str, is_first: bool) -> Sequence[dict[Any, Any]]:
        """Return what becomes of a sample; the counts take it in.

        Args:
            sample: Any sample.
            counts: Added to.
            where: What messages call the sample.
            is_first: Whether nothing has come of the samples before it.

        Raises:
            ValueError: If the sample cannot be read; the counts are as they were.
        """

    def table(self, batch: "pa.RecordBatch", kept: Sequence[int], samples: Sequence[dict[Any, Any]]) -> "pa.Table":
        """Return results as a table whose columns have the types that they have in the input.

        Args:
            batch: The rows read.
            kept: For each result the number of the row that it comes from.
            samples: The results.
        """


class Task(Protocol):
    """What is to be done with every sample. It is sent to the processes that do it."""

    def fingerprint(self) -> dict[str, Any]:
        """Return all that the results depend on, besides the input, as plain values."""

    def new_counts(self) -> Counts:
        """Return counts of nothing yet."""

    def start(self) -> Work:
        """Return what does it, once in each process."""


class BadSample(ValueError):
    """A sample that cannot be read."""


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        inputs: Files, or ``-``.
        task: What is done with their samples.
        out: The result: ``.json``, ``.jsonl`` or ``.parquet``.
        skip_bad: Whether samples that cannot be read are left out, and counted, or are an error.
    """

    inputs: tuple[str, ...]
    task: Task
    out: Path
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
        return {
            "version": __version__,
            "inputs": [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats],
            "task": [type(self.task).__name__, self.task.fingerprint()],
            "tables": self.as_tables,
            "skip_bad": self.skip_bad,
            "chunks": [CHUNK_SAMPLES, CHUNK_BYTES],
        }


def run_job(
    job: Job, workers: int, on_chunk: Callable[[int, bool], None], chunks: Iterator[SampleChunk] | None = None
) -> Counts:
    """Do the work on all samples and put the result in its place, whole.

    Finished chunks lie in ``OUT.partial`` until then. If that directory is there and was made by the same task from the
    same input, its chunks are not made again.

    Args:
        job: What is to be done.
        workers: Processes; 1: this one.
        on_chunk: Called with the bytes of input done, and whether the chunk was there already.
        chunks: The input, if its beginning has been read already.

    Returns:
        The counts.

    Raises:
        BadSample: If a sample cannot be read, unless they are skipped; what is done is kept.
        ValueError: If the input is broken, or nothing comes of it.
    """
    _prepare_directory(job)
    counts = job.task.new_counts()
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
            was_there = _counts_path(job, chunk.index).is_file()
            if not was_there:
                if pool is None:
                    _process_chunk(chunk)
                else:
                    future = pool.submit(_process_chunk, chunk)
            waiting.append((chunk.without_samples(), future, was_there))
            if len(waiting) > 2 * workers or pool is None:
                _collect(job, waiting, counts, done, on_chunk)
        while waiting:
            _collect(job, waiting, counts, done, on_chunk)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    try:
        counts.check_result(", ".join(job.inputs))
    except ValueError:
        shutil.rmtree(job.directory)
        raise

    _assemble(job, [_chunk_path(job, index) for index in done])
    shutil.rmtree(job.directory)
    return counts


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


def _collect(job: Job, waiting: deque, counts: Counts, done: list[int], on_chunk: Callable[[int, bool], None]) -> None:
    """Take the oldest chunk's counts in."""
    chunk, future, was_there = waiting.popleft()
    if future is not None:
        future.result()
    values = json.loads(_counts_path(job, chunk.index).read_text("utf-8"))
    counts.add(type(counts).from_dict(values))
    done.append(chunk.index)
    on_chunk(chunk.bytes_read, was_there)


def _chunk_path(job: Job, index: int) -> Path:
    return job.directory / f"{index:07d}.{'parquet' if job.as_tables else 'jsonl'}"


def _counts_path(job: Job, index: int) -> Path:
    return job.directory / f"{index:07d}.summary.json"


# -- in a worker -----------------------------------------------------------------------------------------------


_worker: tuple[Job, Work]  # set when the process starts


def _start_worker(job: Job) -> None:
    global _worker
    _worker = (job, job.task.start())


def _start_process(job: Job, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the others
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _start_worker(job)


def _end_with(parent: int) -> None:
    """End this process when its parent was killed, which could not do it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _process_chunk(chunk: SampleChunk) -> None:
    """Work on a chunk and write what comes of it, then its counts: a chunk with counts is whole."""
    job, work = _worker
    counts = job.task.new_counts()
    with whole_file(_chunk_path(job, chunk.index)) as partial:
        results = _results(chunk, job, work, counts)
        if job.as_tables:
            from .columns import write_table

            made = list(results)
            table = work.table(chunk.samples, [number for number, _ in made], [sample for _, sample in made])
            write_table(table, partial)
        else:
            with open(partial, "wb") as file:
                file.writelines(_dump(sample) for _, sample in results)
    write_whole(_counts_path(job, chunk.index), json.dumps(counts.to_dict()))


def _results(chunk: SampleChunk, job: Job, work: Work, counts: Counts) -> Iterator[tuple[int, dict[Any, Any]]]:
    """Yield what comes of the samples of a chunk, each with the number of the row that it comes from."""
    is_first = chunk.index == 0
    rows = chunk.samples if isinstance(chunk.samples, list) else chunk.samples.to_pylist()
    for number, row in enumerate(rows):
        try:
            made = work.process(parse_sample(row), counts, chunk.where(number), is_first)
        except (ValueError, RecursionError) as error:
            problem = f"{chunk.where(number)}: {error or 'nested too deeply'}"
            if not job.skip_bad:
                raise BadSample(problem) from None
            counts.skip(problem)
            continue
        is_first = is_first and not made
        yield from ((number, sample) for sample in made)


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
