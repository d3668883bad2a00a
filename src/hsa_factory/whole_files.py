"""Files that are replaced whole or not at all: a process that is killed leaves the former one, never a half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str], temporary: Path | None = None) -> Iterator[Path]:
    """Yield the path of a temporary file, which takes the place of `path`, on disk, when the block ends well.

    If the block fails, the temporary file is removed and `path` stays as it was.

    Args:
        path: The file to replace; its directory is made if missing.
        temporary: On the same file system; None: a hidden file beside `path`, named after this process.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
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
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
