"""JSON in which no key stands twice: of two values one would be lost without a word."""

import json
from typing import Any


def loads(text: str | bytes) -> Any:
    """Read JSON as `json.loads` does.

    Args:
        text: Bytes are UTF-8, UTF-16 or UTF-32; a byte order mark is passed over.

    Raises:
        ValueError: If it is not JSON, or an object has a key twice; the message names the key.
        RecursionError: If it is nested too deeply.
    """
    return json.loads(text.removeprefix("\ufeff") if isinstance(text, str) else text, object_pairs_hook=_as_dict)


def _as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"the key {twice!r:.80} stands twice in one object; remove one of them.")
