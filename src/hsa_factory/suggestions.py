"""What a misspelt word was probably meant to be, for error messages."""

import difflib
from collections.abc import Sequence
from typing import Any


def did_you_mean(word: object, allowed: Sequence[str]) -> str:
    """Return `` Did you mean 'name'?`` with the allowed word that is closest, or nothing if none is close."""
    close = _closest(str(word), allowed, 0.5)
    return "" if close is None else f" Did you mean {close!r}?"


def misspelt(word: Any, names: Sequence[str]) -> str | None:
    """Return the name that a word all but is; None: it is one, or another word altogether."""
    return _closest(word, names, 0.85) if isinstance(word, str) and word not in names else None


def _closest(word: str, names: Sequence[str], cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(word, names, 1, cutoff)), None)
