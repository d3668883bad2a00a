"""Files of finished parts, read again: what is not whole is named, with what to do."""

import json
from pathlib import Path
from typing import Any

from hsa_factory.user_errors import UserError


def read_json(file: Path) -> Any:
    """Return what a JSON file of a finished part holds.

    Raises:
        UserError: If it is missing or not whole, as after a disk that was full or a copy that was cut off.
    """
    return _read(file, json.loads)


def read_json_lines(file: Path) -> list[Any]:
    """Return what the lines of such a file hold, one at least.

    Raises:
        UserError: As `read_json`.
    """
    return list(_read(file, lambda text: [json.loads(line) for line in text.splitlines() or [""]]))


def read_or_none(file: Path) -> dict[str, Any] | None:
    """Return the values of a JSON file; None: it is not there, or not whole."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _read(file: Path, parse: Any) -> Any:
    try:
        return parse(file.read_text("utf-8"))
    except FileNotFoundError:
        problem = "is missing"
    except ValueError as error:
        problem = f"is not whole ({error})"
    raise UserError(f"{file} {problem}: remove {file.parent}; the same command then does this part anew.")
