"""What commands on files of samples share: their input in any format, their output whole, and its entry for training."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from .. import strict_json
from ..amounts import amount
from ..labeling.counts import Counts
from ..labeling.detect import detect_entry
from ..labeling.job import BadSample, Job, Task, parse_sample, run_job
from ..labeling.locking import locked
from ..labeling.records import SampleChunk
from ..labeling.trajectories.files import TRAJECTORY_SUFFIXES, read_samples
from ..user_errors import UserError
from ..whole_files import write_whole


SUFFIXES = (".json", ".jsonl", ".parquet")
WAIT = 3.0  # seconds: the workers of a run that was killed end within one, and hold its lock until then
LOOKED_AT = 1000  # samples, to find their layout
EPILOG = """\
If it is stopped, what is done stays in OUT.partial; the same command goes on from there. OUT itself is written at the
end, whole. A second run on the same OUT stops with an error.
"""

Entry = dict[str, Any]


def add_input(parser: argparse.ArgumentParser) -> None:
    """Add the argument IN, which may be missing: a command may have something else to do."""
    parser.add_argument(
        "input",
        nargs="?",
        metavar="IN",
        help="JSON, JSON lines, Parquet, a trajectory or a directory of them, dataset_info.json, or - for standard input",
    )


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which data, and where they are written."""
    parser.add_argument("--out", metavar="OUT", help=f"the result: {', '.join(SUFFIXES)}")
    parser.add_argument("--dataset", metavar="NAME", help="which data set, if IN is a dataset_info.json")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how it is done."""
    parser.add_argument("--workers", type=int, metavar="N", help="processes (all cores)")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out what cannot be read, and count it, instead of stopping"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    parser.add_argument(
        "--register", action="store_true", help="add the result to the dataset_info.json beside OUT, ready to train on"
    )


@contextmanager
def said_to_the_user() -> Iterator[None]:
    """Turn what can go wrong into messages and exit codes.

    Raises:
        UserError: If data or an argument is not usable (exit code 2), a sample cannot be read or a process was killed (1),
            or the user stopped it (130).
    """
    try:
        yield
    except BrokenPipeError:  # `| head` has seen enough; the result is written
        sys.stdout = open(os.devnull, "w")
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed (out of memory?). Run the same command again to go on.", 1
        ) from error
    except KeyboardInterrupt as error:
        raise UserError("stopped. Run the same command again to go on.", 130) from error
    except BadSample as error:
        message = f"{str(error).rstrip('.')}. Correct it, or leave such samples out with --skip-bad."
        raise UserError(message, exit_code=1) from error
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


def run_on_files(
    options: argparse.Namespace,
    title: str,
    prepare: Callable[[Entry], tuple[Task, Entry]],
    report: Callable[[Console, Any], None],
) -> None:
    """Do a task on the samples of IN, put the result in the place of OUT, and say what was done.

    Args:
        options: With all that this module adds to a parser; `input` and `out` are given.
        title: What stands before the progress bar.
        prepare: Returns the task, and the entry of ``dataset_info.json`` that describes its result, for the entry that
            describes the input; both without the file's name.
        report: Prints the counts.

    Raises:
        UserError: If an argument is not usable.
        ValueError: As `run_job`.
    """
    out = Path(options.out)
    if out.suffix not in SUFFIXES:
        raise UserError(f"--out {options.out!r}: the name must end with {', '.join(SUFFIXES)}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out, WAIT):
        workers = _check(options, out)
        inputs, entry, chunks = _open(options)
        task, described = prepare(entry)
        job = Job(inputs, task, out, options.skip_bad)
        counts, resumed = _run_with_progress(job, workers, title, chunks)
        console = Console(width=None if sys.stdout.isatty() else 120)
        if resumed:
            console.print(
                f"{amount(resumed, 'chunk')} of samples {'was' if resumed == 1 else 'were'} there from an earlier run",
                highlight=False,
            )
        report(console, counts)
        _print_entry(console, out, described, options.register)


def _check(options: argparse.Namespace, out: Path) -> int:
    """Check the options before anything is read, and return the number of processes."""
    if out.exists() and not options.overwrite:
        raise UserError(f"--out {options.out!r} exists. Use --overwrite to replace it.")
    workers: int = _cores() if options.workers is None else options.workers
    if workers < 1:
        raise UserError(f"--workers {workers}: expected a whole number ≥ 1.")
    info = out.with_name("dataset_info.json")
    if options.register and not options.overwrite and out.stem in _read_info(info):
        raise UserError(f"--register: {info} has a data set {out.stem!r}. Use --overwrite to replace it.")
    return workers


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open(options: argparse.Namespace) -> tuple[tuple[str, ...], Entry, Iterator[SampleChunk]]:
    """Return the files to read, their entry of ``dataset_info.json``, given or found, and their samples."""
    inputs, entry = _find_data(options.input, options.dataset)
    chunks = read_samples(inputs)
    if entry is None:
        first = next(chunks, None)
        if first is None:
            raise UserError(f"{options.input}: there is no sample in it.")
        entry = detect_entry(_samples(first, options.input))
        chunks = chain([first], chunks)
    return inputs, entry, chunks


def _run_with_progress(job: Job, workers: int, title: str, chunks: Iterator[SampleChunk]) -> tuple[Counts, int]:
    """Return the counts, and how many chunks were there from an earlier run."""
    console = Console(stderr=True)
    total = None if "-" in job.inputs else sum(os.path.getsize(path) for path in job.inputs)
    resumed = 0
    with Progress(
        TextColumn(title),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("", total=total)

        def on_chunk(bytes_read: int, was_there: bool) -> None:
            nonlocal resumed
            resumed += was_there
            progress.update(bar, completed=bytes_read)

        return run_job(job, workers, on_chunk, chunks), resumed


def _find_data(source: str, name: str | None) -> tuple[tuple[str, ...], Entry | None]:
    """Return the files to read, and their entry of ``dataset_info.json`` if they are given by it."""
    if source == "-":
        return (source,), None
    path = Path(source)
    if path.is_dir() and (path / "dataset_info.json").is_file():
        path /= "dataset_info.json"
    if path.name != "dataset_info.json" and name is None:
        return _find_files(path), None

    info = _read_info(path)
    if name not in info:
        raise UserError(f"--dataset {name!r}: {path} has no such data set; it has {', '.join(map(repr, info))}.")
    entry = info[name]
    if "file_name" not in entry:
        raise UserError(f"--dataset {name!r}: its data are not in a file (file_name); only files can be read.")
    data = path.parent / entry["file_name"]
    files = sorted(filter(Path.is_file, data.iterdir())) if data.is_dir() else [data]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: there is no such file ({path} names it).")
    return tuple(map(str, files)), {key: value for key, value in entry.items() if key != "file_name"}


def _find_files(path: Path) -> tuple[str, ...]:
    """Return a file, or the files of trajectories in a directory and below it."""
    if path.is_dir():
        files = sorted(
            str(file) for file in path.rglob("*") if file.is_file() and file.name.endswith(TRAJECTORY_SUFFIXES)
        )
        if not files:
            raise FileNotFoundError(
                f"{path}: neither a dataset_info.json nor files of trajectories ({', '.join(TRAJECTORY_SUFFIXES)}) in it."
            )
        return tuple(files)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    return (str(path),)


def _read_info(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        info = strict_json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(info, dict):
        raise UserError(f"{path}: expected a mapping of data sets.")
    return info


def _samples(chunk: SampleChunk, source: str) -> Sequence[dict[str, Any]]:
    """Return the samples of a chunk that can be read, to look at.

    Raises:
        UserError: If there is none; the message says why the first cannot.
    """
    rows = chunk.samples if isinstance(chunk.samples, list) else chunk.samples.to_pylist()
    samples, problems = [], []
    for number, row in enumerate(islice(rows, LOOKED_AT)):
        try:
            sample = parse_sample(row)
        except (ValueError, RecursionError) as error:
            problems.append(f"{chunk.where(number)}: {error or 'nested too deeply'}")
            continue
        if isinstance(sample, dict):
            samples.append(sample)
        else:
            problems.append(f"{chunk.where(number)}: expected an object, got {sample!r:.80}.")
    if not samples:
        raise UserError(f"{source}: no sample can be read. {problems[0]}")
    return samples


def _print_entry(console: Console, out: Path, entry: Entry, register: bool) -> None:
    """Say how the result is trained on, or write it into ``dataset_info.json``."""
    info = out.with_name("dataset_info.json")
    described = {"file_name": out.name, **entry}
    if not register:
        console.print(f"written to {out}; add to {info} (or use --register):", highlight=False, soft_wrap=True)
        text = json.dumps({out.stem: described}, ensure_ascii=False, indent=2)
        console.print(text, highlight=False, markup=False, soft_wrap=True)
        return

    with locked(info, 60):
        everything = {**_read_info(info), out.stem: described}
        write_whole(info, json.dumps(everything, ensure_ascii=False, indent=2) + "\n")
    console.print(f"written to {out}, which is data set {out.stem!r} of {info} now", highlight=False, soft_wrap=True)
