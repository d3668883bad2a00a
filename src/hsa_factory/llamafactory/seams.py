"""Replacing named parts of LLaMA-Factory for a while: checked first, taken back in any case."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Seam:
    """One attribute that is replaced.

    Attributes:
        owner: Module or class.
        name: Attribute.
        replacement: Called as ``replacement(original, *args, **kwargs)``.
        is_call: False: the replacement is put there as it is, such as a class whose fields are looked at.
    """

    owner: Any
    name: str
    replacement: Callable[..., Any]
    is_call: bool = True

    def __str__(self) -> str:
        return f"{getattr(self.owner, '__name__', self.owner)}.{self.name}"


@contextmanager
def installed(seams: Sequence[Seam]) -> Iterator[None]:
    """Replace all seams, and put every original back at the end, whatever happens.

    Raises:
        RuntimeError: Before anything is replaced, if a seam is missing or already replaced.
    """
    for seam in seams:
        original = vars(seam.owner).get(seam.name)
        if not callable(original):
            raise RuntimeError(f"{seam} is not there: this LLaMA-Factory differs from the one hsa-factory knows.")
        if hasattr(original, "hsa_original"):
            raise RuntimeError(f"{seam} is replaced already.")

    originals = [vars(seam.owner)[seam.name] for seam in seams]
    try:
        for seam, original in zip(seams, originals):
            setattr(seam.owner, seam.name, _bind(seam.replacement, original) if seam.is_call else seam.replacement)
        yield
    finally:
        for seam, original in zip(seams, originals):
            setattr(seam.owner, seam.name, original)


def _bind(replacement: Callable[..., Any], original: Any) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return replacement(original, *args, **kwargs)

    if inspect.isgeneratorfunction(replacement):  # gradio looks at the function to know that it yields
        call = _as_generator(call)
    if not inspect.isclass(original):
        functools.update_wrapper(call, original)
    bound: Any = staticmethod(call) if isinstance(original, staticmethod) else call
    bound.hsa_original = original
    return bound


def _as_generator(function: Callable[..., Any]) -> Callable[..., Any]:
    def generate(*args: Any, **kwargs: Any) -> Any:
        yield from function(*args, **kwargs)

    return generate
