"""What a misspelt word was probably meant to be, for error messages."""

import difflib
from collections.abc import Sequence


def did_you_mean(word: object, allowed: Sequence[str]) -> str:
    """Return `` Did you mean 'name'?`` with the allowed word that is closest, or nothing if none is close."""
    close = difflib.get_close_matches(str(word), allowed, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
