"""The arguments of a model's forward by their names."""

import inspect
from typing import Any

from transformers import PreTrainedModel


_signatures: dict[type, inspect.Signature] = {}


def by_name(module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a forward's arguments by their names: `kwargs` itself where all have one.

    Raises:
        TypeError: If they do not fit the forward; the error that the call itself would be.
    """
    if not args:
        return kwargs
    found = signature(type(module))
    found.bind_partial(module, *args, **kwargs)
    return {**dict(zip(list(found.parameters)[1:], args)), **kwargs}


def signature(model_class: type[PreTrainedModel]) -> inspect.Signature:
    """Return a forward's signature; to make one is slow enough to be seen in a short step."""
    if model_class not in _signatures:
        _signatures[model_class] = inspect.signature(model_class.forward)
    return _signatures[model_class]
