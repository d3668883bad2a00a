"""Files that are replaced whole or not at all: a process that is killed leaves the former one, never a half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of a temporary file beside `path`, which takes its place when the block ends well.

    The temporary file is hidden and named after this process. If the block fails, it is removed and `path` stays as it
    was.

    Args:
        path: The file to replace; its directory is made if missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file as a whole.

    Args:
        path: The file; its directory is made if missing.
        content: A text is written in UTF-8.

    Raises:
        OSError: If it cannot be written; a former file is as it was then.
    """
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
