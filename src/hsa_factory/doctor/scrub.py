"""Messages for a bug report: short, and without the paths of this machine, which hold names of people."""

import getpass
import re
from pathlib import Path


_PATH = re.compile(r"""(?<![\w.:/])(?:~|[A-Za-z]:)?(?:[\\/][^\s\\/:'"`,;()<>|]+)+[\\/]?""")
_LONGEST = 300  # characters


def scrub(error: BaseException | str) -> str:
    """Return an error's class and first lines, or a text, with every path cut down to its last name.

    Args:
        error: What was raised, or a text.
    """
    text = str(error).strip()
    if isinstance(error, BaseException):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    text = " ".join(text.split())
    text = _PATH.sub(_last_name, text)
    for name in _own_names():
        text = text.replace(name, "…")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def _last_name(path: re.Match[str]) -> str:
    return "…/" + re.split(r"[\\/]", path[0].rstrip("\\/"))[-1]


def _own_names() -> list[str]:
    """Names that are this user's and could stand in a message without a path; common words are left."""
    try:
        names = {getpass.getuser(), Path.home().name}
    except (OSError, KeyError, RuntimeError):  # a container's user without a name
        return []
    return [name for name in names if len(name) > 3 and name not in ("root", "user", "home", "ubuntu")]
