"""Encoding one text exactly as `tokenizer.encode` does, without most of what that costs beside the encoding."""

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerFast


_METHODS = ("encode", "_encode_plus")  # what `tokenizer.encode` runs through
_SURROGATE = re.compile("[\ud800-\udfff]")


class TextEncoder:
    """Encodes texts without special tokens around them.

    A fast tokenizer of transformers' own class is asked past its wrapper, whose checks and containers cost as much as a
    short text itself, and without offsets where nobody needs them. Any other tokenizer is called as it is.

    Args:
        tokenizer: Of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.backend = tokenizer.backend_tokenizer if _is_plain(tokenizer) else None
        self.longest = tokenizer.model_max_length

    def encode(self, text: str) -> list[int]:
        """Return a text's ids.

        Raises:
            ValueError: If it holds half a character, which no tokenizer can read.
        """
        try:
            return self._encode(text)
        except (TypeError, UnicodeError):
            check_characters(text)
            raise

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        """Return a text's ids and where each begins and ends in it; None if the tokenizer does not know.

        Raises:
            ValueError: As `encode`.
        """
        try:
            return self._encode_with_offsets(text)
        except (TypeError, UnicodeError):
            check_characters(text)
            raise

    def _encode(self, text: str) -> list[int]:
        if self.backend is not None:
            (encoding,) = self.backend.encode_batch_fast([text], add_special_tokens=False)
            if len(encoding) <= self.longest:
                return encoding.ids
        return self.tokenizer.encode(text, add_special_tokens=False)  # warns of a text that is too long for the model

    def _encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
        if self.backend is not None:
            (encoding,) = self.backend.encode_batch([text], add_special_tokens=False)
            if len(encoding) <= self.longest:
                return encoding.ids, encoding.offsets
        if not getattr(self.tokenizer, "is_fast", False):
            return self._encode(text), None
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]


def check_characters(text: str) -> None:
    half = _SURROGATE.search(text)
    if half:
        around = ascii(text[max(half.start() - 20, 0) : half.end() + 20])
        raise ValueError(
            f"the text {around} holds half a character (a lone surrogate), which is no valid Unicode: remove it, or write "
            "the whole character."
        )


def _is_plain(tokenizer: Any) -> bool:
    """Whether `tokenizer.encode` does nothing but ask the backend, in the state that it is in."""
    if not getattr(tokenizer, "is_fast", False):
        return False
    for name in _METHODS:
        method = getattr(tokenizer, name, None)
        if getattr(method, "__func__", None) is not getattr(PreTrainedTokenizerFast, name, method):
            return False
    backend = tokenizer.backend_tokenizer
    return (
        backend.truncation is None
        and backend.padding is None
        and backend.encode_special_tokens == tokenizer.split_special_tokens
        and hasattr(backend, "encode_batch_fast")
    )


def known_texts(tokenizer: Any) -> tuple[str, str]:
    """Return two short texts that a tokenizer can encode, and whose ids end differently: letters where it knows them.

    Args:
        tokenizer: Of transformers; a vocabulary of whole words without an unknown token knows no letters.

    Raises:
        ValueError: If its whole vocabulary gives no two.
    """
    found: dict[int, str] = {}
    for text in chain("xy", _words(tokenizer)):
        ids = _ids_if_known(tokenizer, text) if text else []
        if ids:
            found.setdefault(ids[-1], text)
        if len(found) == 2:
            first, second = found.values()
            return first, second
    raise ValueError(
        "The tokenizer's vocabulary has no two tokens whose texts it can encode: a conversation needs them."
    )


def _words(tokenizer: Any) -> Iterator[str]:
    """Yield the text of each token that is not special."""
    special = set(tokenizer.all_special_ids)
    for number in range(len(tokenizer)):
        if number not in special:
            yield tokenizer.decode([number]).strip()


def _ids_if_known(tokenizer: Any, text: str) -> list[int]:
    """Return a text's ids; none if the tokenizer cannot encode it."""
    try:
        return list(tokenizer.encode(text, add_special_tokens=False))
    except Exception:  # the class itself is what tokenizers raises for a word that is unknown
        return []
