"""Data files that the `datasets` library cannot read: which one, and why; its own error names neither."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from datasets.exceptions import DatasetGenerationError

from ... import strict_json


@contextmanager
def explain_failure(name: str, files: Sequence[str]) -> Iterator[None]:
    """Name the data set and the file when `datasets` fails to read files of this machine.

    Args:
        name: The data set's.
        files: What is read; none: no files of this machine, whose errors stay as they are.

    Raises:
        ValueError: In the stead of the library's error.
    """
    try:
        yield
    except (DatasetGenerationError, pa.ArrowException, UnicodeDecodeError) as error:
        if not files:
            raise
        file, problem = _find_broken(files) or (", ".join(files), error.__cause__ or error)
        empty = os.path.exists(file) and not os.path.getsize(file)
        why = "it is empty" if empty else f"{problem}. Was it copied whole, and is it what its name says?"
        raise ValueError(f"dataset {name!r}: {file} cannot be read: {why}") from error


def read_dataset_info(path: str) -> Any:
    """Read a ``dataset_info.json``, with or without a byte order mark.

    Raises:
        ValueError: If it is not JSON, or has a data set or another key twice.
    """
    try:
        with open(path, "rb") as file:
            return strict_json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error or 'nested too deeply'}") from None


def _find_broken(files: Sequence[str]) -> tuple[str, Exception] | None:
    """Return the first file that cannot be read by itself, and why; None: each can, so they do not fit together."""
    for file in files:
        try:
            _read_through(file)
        except (pa.ArrowException, OSError, ValueError) as error:
            return file, error
    return None


def _read_through(file: str) -> None:
    if file.endswith(".parquet"):
        import pyarrow.parquet as pq

        with pq.ParquetFile(file) as parquet:
            for _ in parquet.iter_batches():
                pass
    elif file.endswith(".arrow"):
        with pa.memory_map(file) as source:
            try:
                for _ in pa.ipc.open_stream(source):
                    pass
            except pa.ArrowInvalid:
                with pa.ipc.open_file(file) as table:
                    table.read_all()
    else:
        with open(file, encoding="utf-8") as text:
            for _ in text:
                pass
