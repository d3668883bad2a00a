"""Where the views are written: a file that is replaced whole or not at all, or the terminal."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def open_output(path: str | None) -> Iterator[TextIO]:
    """Open the output; a file takes its name only when the block has ended well.

    Args:
        path: None: standard output.

    Raises:
        OSError: At once, if the file cannot be written.
    """
    if path is None:
        yield sys.stdout
        return

    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"--output {path!r} is a directory; name a file in it.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"--output {path!r}: there is no directory {str(target.parent)!r}.")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            yield file
        partial.replace(target)
    except PermissionError as error:
        raise PermissionError(f"--output {path!r} cannot be written: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)
