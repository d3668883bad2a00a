"""A tokenizer for raw texts whose ids carry their type, to stand where LLaMA-Factory calls its own."""

from collections.abc import Callable, Sequence
from typing import Any

from ...typed.ids import TypedTokenId, type_token_ids
from ...typed.spans import find_runs
from ...typed.text import TypedText, token_types
from .text_encoder import check_characters


class TypedTextTokenizer:
    """Tokenizes texts as the tokenizer itself does; the ids of each text carry the types of its characters.

    Args:
        tokenizer: Of transformers; everything but a call is answered by it.
        choose: Called with the whole ids of each text, before any is cut; returns those to go on with, and their places among
            the texts. None: all stay as they are.
    """

    def __init__(
        self,
        tokenizer: Any,
        choose: Callable[[list[list[TypedTokenId]]], tuple[list[list[TypedTokenId]], list[int]]] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.choose = choose

    def __getattr__(self, name: str) -> Any:
        if name == "tokenizer":  # not there yet while unpickling
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def __call__(
        self, texts: Sequence[str], truncation: bool = False, max_length: int | None = None, **options: Any
    ) -> dict[str, list[list[int]]]:
        """Tokenize.

        Args:
            texts: Plain, or typed.
            truncation: Whether more than `max_length` ids are cut away, on the tokenizer's side.
            max_length: Ids of a text that stay.
            **options: Of the tokenizer.

        Returns:
            Its columns, a list of ids or numbers for each text that stays.

        Raises:
            ValueError: If a text holds half a character.
        """
        if not texts:
            return {"input_ids": [], "attention_mask": []}
        typed = [text if isinstance(text, TypedText) else TypedText(text, 0) for text in texts]
        with_offsets = self.tokenizer.is_fast and not all(text.is_uniform for text in typed)
        try:
            encoded = self.tokenizer(
                list(map(str, typed)), return_offsets_mapping=with_offsets, verbose=False, **options
            )
        except (TypeError, UnicodeError):
            for text in typed:
                check_characters(text)
            raise
        columns = dict(encoded)
        offsets = columns.pop("offset_mapping", [None] * len(typed))
        columns["input_ids"] = list(map(_type_ids, typed, columns["input_ids"], offsets))
        if self.choose is not None:
            columns["input_ids"], places = self.choose(columns["input_ids"])
            columns |= {
                name: [values[place] for place in places] for name, values in columns.items() if name != "input_ids"
            }
        if truncation:
            kept = slice(max_length) if self.tokenizer.truncation_side == "right" else slice(-(max_length or 0), None)
            columns = {name: [values[kept] for values in rows] for name, rows in columns.items()}
        return columns


def _type_ids(text: TypedText, ids: Sequence[int], offsets: Sequence[tuple[int, int]] | None) -> list[TypedTokenId]:
    typed: list[TypedTokenId] = []
    for start, stop, semantic_type in find_runs(token_types(text, offsets, len(ids))):
        typed += type_token_ids(ids[start:stop], semantic_type)
    return typed
