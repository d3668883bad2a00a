"""What differs between the versions of transformers that HSA runs on, each difference in one place.

- The keyword for a key/value cache, in a model's forward and in `generate`: `past_key_values` at first, `cache` later, where
  the former name still works, with a warning. An output names it alike.
- `Cache.crop(n)`: how many tokens to remember at first, later only how many to forget, by a number below 0.
- Whether a model checkpoints: `is_gradient_checkpointing`, later `is_activation_checkpointing`.
"""

import inspect
from collections.abc import Mapping, MutableMapping
from dataclasses import fields
from typing import Any

from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast


_OLD_NAME, _NEW_NAME = "past_key_values", "cache"

CACHE = _NEW_NAME if _NEW_NAME in {field.name for field in fields(BaseModelOutputWithPast)} else _OLD_NAME
"""The keyword under which this version of transformers takes a cache."""

CROP_BY_NUMBER = "tokens_to_remove" in inspect.signature(DynamicLayer.crop).parameters
"""Whether `crop` is told how many tokens to forget, so that `crop(0)` forgets none."""


def find_cache(given: Mapping[str, Any]) -> Any:
    """Return the cache among keywords, whichever name it has; None: there is none."""
    return next((given[name] for name in (CACHE, _OLD_NAME) if given.get(name) is not None), None)


def name_cache(given: MutableMapping[str, Any]) -> None:
    """Give the cache among keywords the name that this version of transformers has for it.

    Raises:
        ValueError: If there are two, one under each name.
    """
    if CACHE == _OLD_NAME or _OLD_NAME not in given:
        return
    cache = given.pop(_OLD_NAME)
    if cache is not None and given.setdefault(CACHE, cache) is not cache:
        raise ValueError(f"{CACHE} and {_OLD_NAME} are two names of the same argument: pass {CACHE} only.")


def is_checkpointing(model: Any) -> bool:
    """Whether a model computes activations anew in the backward pass."""
    found = getattr(model, "is_activation_checkpointing", None)
    return bool(model.is_gradient_checkpointing if found is None else found)
