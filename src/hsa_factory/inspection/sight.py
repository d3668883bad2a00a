"""In words: how many replies cannot see what they answer, and which options would show it to them."""

from collections import Counter
from collections.abc import Mapping
from typing import Any


_TURNS = 1  # to start with: with 0, a reply that is NOISE itself is gone when its result arrives
_SUBJECTS = {
    "message": "{} see nothing of the message before them",
    "media": "{} after an image or other media see nothing of it",
    "marker": "{} after the feedback token do not see it",
}


def describe_sight(account: Mapping[str, Any]) -> str:
    """Say which replies cannot see what they answer, and what to set; empty if all see all of it.

    Args:
        account: Of a data set, as in ``hsa_report.json``.
    """
    sight = Counter(account.get("sight", {}))
    parts = [
        text.format(f"{sight[f'{key}_unseen_at_start']:,} of {sight[key]:,} replies")
        for key, text in _SUBJECTS.items()
        if sight[f"{key}_unseen_at_start"]
    ]
    partly = sight["message_partly_seen_at_start"]
    if partly:
        parts.append(f"{partly:,} of {sight['replies']:,} replies see only a part of the message before them")
    if not parts:
        return ""
    return f"{', '.join(parts)}. {_advice(sight, account.get('windows_needed', {}))}"


def _advice(sight: Mapping[str, int], windows: Mapping[str, int]) -> str:
    advice = []
    if windows:
        turns = ", ".join(f"hsa.{kind.lower()}_turns={_TURNS}" for kind in windows)
        needed = ", ".join(f"hsa.{kind.lower()}_window={size}" for kind, size in windows.items())
        kept = "GLOBAL" if "LANDMARK" in windows else "LANDMARK"
        less = " (0 where replies are LANDMARK)" if "NOISE" in windows else ""
        advice.append(
            f"To show all of it to the end of every reply, set {turns}{less}; or {needed}; or give these messages the type "
            f"{kept}."
        )
    if sight["hidden"]:
        advice.append(f"The option hsa.hide keeps it, or a part of it, from {sight['hidden']:,} of them.")
    return " ".join(advice)
