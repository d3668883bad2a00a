"""LLaMA-Factory's arguments of a training file, with text where an option takes text."""

from dataclasses import replace
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llamafactory.hparams import (
    DataArguments,
    FinetuningArguments,
    GeneratingArguments,
    ModelArguments,
    RayArguments,
    TrainingArguments,
)

from ..training_file import TrainingFile


_CLASSES = (ModelArguments, DataArguments, TrainingArguments, RayArguments, FinetuningArguments, GeneratingArguments)
_TRUE_OR_A_PATH = ("resume_from_checkpoint",)  # declared as text, and true goes on from the last checkpoint


def with_text(training_file: TrainingFile) -> TrainingFile:
    """Give options that take text the words that stand in a training file or behind it.

    YAML reads ``no``, ``off``, ``on`` and ``yes`` as true or false and ``007`` or ``1e5`` as a number, and OmegaConf, which
    LLaMA-Factory reads files with, does so on the command line too: `save_strategy=no` is ``False``, which is no strategy.
    """
    words = {name: text for name, text in training_file.written.items() if takes_text(name, text)}
    return replace(training_file, args={**training_file.args, **words})


def takes_text(option: str, text: str) -> bool:
    """Return whether an option takes text and nothing else (or none), and this text if it has a choice of several."""
    hint = _hints().get(option, object)
    return option not in _TRUE_OR_A_PATH and _is_text(hint) and _admits(hint, text)


@cache
def _hints() -> dict[str, Any]:
    return {name: hint for arguments in _CLASSES for name, hint in get_type_hints(arguments).items()}


def _is_text(hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return all(part is NoneType or _is_text(part) for part in get_args(hint))
    return hint is str or _choice(hint) is not None


def _admits(hint: Any, text: str) -> bool:
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    choices = [choice for part in parts if (choice := _choice(part)) is not None]
    return not choices or any(text in choice for choice in choices)


def _choice(hint: Any) -> tuple[str, ...] | None:
    """Return the texts that a type has a choice of; None: it is none of a choice of texts."""
    if get_origin(hint) is Literal:
        values = get_args(hint)
        return values if all(isinstance(value, str) for value in values) else None
    if isinstance(hint, type) and issubclass(hint, Enum) and issubclass(hint, str):
        return tuple(str(member.value) for member in hint)
    return None
