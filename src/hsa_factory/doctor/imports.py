"""Whether what is installed can be imported, tried in a process of its own: a package that does not fit may crash it."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .scrub import scrub


_LINE = "hsa-factory doctor: "
_CODE = f"""
import importlib, json, sys
for name in sys.argv[1:]:
    error = None
    try:
        importlib.import_module(name)
    except BaseException as failure:
        error = f"{{type(failure).__name__}}: {{failure}}"
    print("\\n{_LINE}" + json.dumps([name, error]), flush=True)
"""


@dataclass(frozen=True)
class Import:
    """One module.

    Attributes:
        name: Its name.
        error: Why it cannot be imported; None: it can.
    """

    name: str
    error: str | None


def try_imports(names: Sequence[str], limit_s: float = 60.0) -> list[Import]:
    """Import modules one after the other.

    Args:
        names: Of modules that are installed.
        limit_s: Seconds for all.

    Returns:
        What came of them, up to the one that ended the process, if one did.
    """
    if not names:
        return []
    command = [sys.executable, "-c", _CODE, *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit_s, check=False)
        output, end = done.stdout, f"it ends the process (exit code {done.returncode})"
    except subprocess.TimeoutExpired as late:
        output = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        end = f"not done after {limit_s:.0f} s"
    found = []
    for line in output.splitlines():
        if line.startswith(_LINE):
            name, error = json.loads(line.removeprefix(_LINE))
            found.append(Import(name, None if error is None else scrub(error)))
    if len(found) < len(names):
        found.append(Import(names[len(found)], end))
    return found
