"""What the commands of the experiment share: numbers that can be typed, and how a command ends that cannot go on."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hsa_factory.user_errors import UserError


CANNOT_BEGIN, STOPPED = 2, 130


def ending(name: str, work: Callable[[], int]) -> int:
    """Do a command's work, and say in one line why it cannot begin or go on.

    Args:
        name: Of the command, before what is said.
        work: Returns the exit code.

    Returns:
        The exit code: that of `work` or of its `UserError`, 2 if it could not begin or go on, 130 if it was stopped.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the processes of stages end, too
    code = CANNOT_BEGIN
    try:
        return work()
    except UserError as error:
        text, code = str(error), error.exit_code
    except OSError as error:  # a full disk, a folder that is a file or must not be written
        text = f"{error}; once that is mended, the same command goes on."
    except ImportError as error:
        text = f"{error}: pip install 'hsa-factory[experiment]'"
    except KeyboardInterrupt:
        text, code = "stopped; the same command goes on.", STOPPED
    print(f"{name}: {text}", file=sys.stderr)
    return code


@contextmanager
def only_run_in(out: Path) -> Iterator[None]:
    """Hold a folder of results for one run; it is made if it is missing.

    Raises:
        UserError: If another run is at work in it.
        OSError: If it cannot be written, or what is done in it raises one; names the folder, if no file.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another run is at work in {out}: wait for it, or choose another --out.") from None
    with lock:
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(out)  # a write to a full disk names nothing
            raise


def number_up_to(most: int | None = None) -> Callable[[str], int]:
    """Return what reads a whole number from 1 to `most` (None: without end), for an option of `argparse`."""
    allowed = "a whole number ≥ 1" if most is None else f"a whole number from 1 to {most:,}"

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < 1 or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"{allowed}, not {text!r}")
        return int(text)

    return read


def folder(text: str) -> Path:
    """Read the name of a folder, for an option of `argparse`; one that is not there can be made."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of a folder is empty")
    return Path(text)
