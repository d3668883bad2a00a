"""Events that LLaMA Board has made: what they read, and how they are made to read more."""

from collections.abc import Callable, Sequence
from typing import Any

from gradio.context import Context


def inputs_of(function: Callable[..., Any]) -> list[Any]:
    """Return the elements that an event hands to a function, in the page that is being built.

    Raises:
        RuntimeError: If there is no such event, or there are several.
    """
    return list(_find(function).inputs)


def add_inputs(function: Callable[..., Any], elements: Sequence[Any]) -> None:
    """Let an event hand more elements to its function, behind those that it has.

    Raises:
        RuntimeError: If there is no such event, or there are several.
    """
    event = _find(function)
    event.inputs = [*event.inputs, *elements]


def _find(function: Callable[..., Any]) -> Any:
    blocks = Context.root_block
    events = [] if blocks is None else list(blocks.fns.values())
    found = [event for event in events if event.fn == function]
    if len(found) != 1:
        name = getattr(function, "__qualname__", function)
        raise RuntimeError(f"LLaMA Board has {len(found)} events that call {name}: it differs from the one we know.")
    return found[0]
