"""One writer a file: others wait for a moment, then are told who is writing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(path: Path, wait: float) -> Iterator[None]:
    """Hold a file's lock, which lies beside it while it is held; the system frees it when its holder is killed.

    Args:
        path: The file, there or not; its directory is.
        wait: Seconds to wait for another holder.

    Raises:
        ValueError: If the lock is still held then; names the process.
    """
    place = path.with_name(f".{path.name}.lock")
    lock = FileLock(place)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise ValueError(
            f"another run{_holder(place)} is writing {path}. Wait for it to end, or choose another output."
        ) from None
    try:
        place.write_text(str(os.getpid()))
        yield
    finally:
        with suppress(OSError):
            place.unlink()  # before it is released: filelock sees that a file it opened is gone, and tries again
        lock.release()


def _holder(place: Path) -> str:
    with suppress(OSError):
        if pid := place.read_text().strip():
            return f" (process {pid})"
    return ""
