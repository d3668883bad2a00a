"""Where the views are written: a file that is replaced whole or not at all, or the terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ..whole_files import whole_file


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
    try:
        with whole_file(target) as temporary, open(temporary, "w", encoding="utf-8") as file:
            yield file
    except PermissionError as error:
        raise PermissionError(f"--output {path!r} cannot be written: {error.strerror}.") from error
