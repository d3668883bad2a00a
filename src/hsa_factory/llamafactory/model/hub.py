"""Models and adapters that are named as on the Hugging Face Hub: where their rules lie once they are downloaded."""

import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from ...config import CONFIG_NAME


_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def local_places(places: Iterable[str], revision: Any = None, cache_dir: Any = None, token: Any = None) -> list[str]:
    """Return the directories that models, adapters and checkpoints stand for, each once.

    Args:
        places: Directories, and names on the Hub, whose rules are downloaded. Empty ones are left out.
        revision: Branch, tag or commit; None: the main branch.
        cache_dir: Where downloads are kept; None: the cache of transformers.
        token: To log in with; None: the one of the environment, if any.

    Returns:
        Directories as they were given, and the downloaded snapshot of a name that has rules. What is neither, or has no
        rules on the Hub, is not among them.
    """
    options = (revision or None, cache_dir or None, token)
    found = (place if Path(place).is_dir() else _snapshot(place, *options) for place in places if place)
    return list(dict.fromkeys(place for place in found if place is not None))


@cache  # a run asks several times, and a machine without a network waits each time
def _snapshot(name: str, revision: Any, cache_dir: Any, token: Any) -> str | None:
    if not _NAME.fullmatch(name):
        return None
    try:
        rules = hf_hub_download(name, CONFIG_NAME, revision=revision, cache_dir=cache_dir, token=token)
    except (OSError, ValueError):  # no such model, or no rules in it; whoever loads the model says what it lacks
        return None
    return os.path.dirname(rules)
