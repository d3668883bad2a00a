"""Counting tokens by type, with a tokenizer's ``tokenizer.json`` alone."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from ..semantics import SemanticType
from ..typed.text import TypedText, token_types
from .matching import MessageTypes


_UNTYPED = len(SemanticType)  # after all types: a token that holds a typed character has its type


def load_tokenizer(path: str) -> Any:
    """Load a tokenizer.

    Args:
        path: ``tokenizer.json``, or the directory that holds it.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers share the cores
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"--tokenizer {path!r}: no tokenizer.json there.")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"--tokenizer {path!r}: cannot be read: {error}") from None


class TokenCounter:
    """Counts a text's tokens by type's name; those without a type as ``default``."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str, typing: MessageTypes) -> Counter:
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        typed = TypedText(text, _UNTYPED if typing.semantic_type is None else typing.semantic_type, typing.spans)
        types = token_types(typed, encoding.offsets, len(encoding.ids))
        counts = Counter(types)
        return Counter({SemanticType(kind).name if kind < _UNTYPED else "default": n for kind, n in counts.items()})
