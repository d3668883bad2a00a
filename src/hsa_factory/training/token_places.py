"""Tokens of a rendered conversation, and which of its characters each stands for."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .chat_template import ChatTemplate


_PLACEHOLDERS = ("image_token", "video_token", "audio_token", "boi_token", "boa_token", "bov_token")


class Encoded(NamedTuple):
    """The tokens of a conversation.

    Attributes:
        input_ids: As transformers makes them.
        places: (start, end) of each in the characters of `characters`.
        characters: (m,) int64: for each character of the text that was tokenized, its place in the rendered one; those that a
            processor has put in the stead of a placeholder all stand at its first character.
        media: (m,) bool, which characters were put in so.
        columns: What else a processor gives.
    """

    input_ids: list[int]
    places: list[tuple[int, int]]
    characters: np.ndarray
    media: np.ndarray
    columns: dict[str, Any]


def encode(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    text: str,
    boundaries: np.ndarray,
    processor_kwargs: Mapping[str, Any],
) -> Encoded:
    """Tokenize a conversation as `apply_chat_template` does.

    Args:
        template: The chat template.
        messages: The conversation.
        text: The same, rendered.
        boundaries: Places in the text between which nothing changes, for tokenizers that do not say what a token stands for.
        processor_kwargs: For the processor.

    Raises:
        ValueError: If the tokens cannot be told apart by their characters; it says why.
    """
    if template.is_processor:
        return _encode_media(template, messages, text, boundaries, processor_kwargs)
    ids, tokenizer = None, template.tokenizer
    if not _is_stock(template) or not getattr(tokenizer, "is_fast", False):
        output = template.official(messages, tokenize=True, return_dict=True, add_generation_prompt=False)
        ids = [int(token) for token in output["input_ids"]]
    ids, places = _find_places(tokenizer, text, ids, {"add_special_tokens": False}, boundaries)
    return Encoded(ids, places, np.arange(len(text)), np.zeros(len(text), bool), {})


def _is_stock(template: ChatTemplate) -> bool:
    """Whether `apply_chat_template` tokenizes the text by a plain call of the tokenizer."""
    from transformers import PreTrainedTokenizerBase

    own = getattr(type(template.tokenizer), "apply_chat_template", None)
    return own is PreTrainedTokenizerBase.apply_chat_template and "tokenizer_kwargs" not in template.options


def _find_places(
    tokenizer: Any, text: str, ids: list[int] | None, kwargs: Mapping[str, Any], boundaries: np.ndarray
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the ids of a text, and where each stands in it.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        ids: What they must be; None: what the tokenizer says.
        kwargs: Arguments of its call.
        boundaries: As of `encode`.
    """
    if not getattr(tokenizer, "is_fast", False):
        ids = list(tokenizer(text, **kwargs)["input_ids"]) if ids is None else ids
        return ids, _find_by_pieces(tokenizer, text, ids, boundaries)
    encoded = tokenizer(text, return_offsets_mapping=True, **kwargs)
    found = list(encoded["input_ids"])
    if ids is not None and found != ids:
        raise ValueError(
            "the tokenizer makes other ids of the template's text, so that nobody can tell their characters."
        )
    return found, [(int(start), int(end)) for start, end in encoded["offset_mapping"]]


def _find_by_pieces(tokenizer: Any, text: str, ids: list[int], boundaries: np.ndarray) -> list[tuple[int, int]]:
    """Tokenize the text piece by piece: where that gives the same ids, each belongs to its piece."""
    found: list[int] = []
    places: list[tuple[int, int]] = []
    for start, end in zip(boundaries[:-1].tolist(), boundaries[1:].tolist()):
        own = tokenizer(text[start:end], add_special_tokens=False)["input_ids"]
        found += own
        places += [(start, end)] * len(own)
    if found != ids:
        raise ValueError(
            f"{type(tokenizer).__name__} does not say which characters a token stands for, and tokens reach over the bounds of "
            "messages. Load the tokenizer with use_fast=True."
        )
    return places


# -- processors ------------------------------------------------------------------------------------------------


class _Recorder:
    """A tokenizer that remembers what a processor lets it tokenize."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.calls: list[tuple[Any, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name == "_tokenizer":
            raise AttributeError(name)
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not args:
            self.calls.append((text, kwargs))
        return self._tokenizer(text, *args, **kwargs)


def _encode_media(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    text: str,
    boundaries: np.ndarray,
    processor_kwargs: Mapping[str, Any],
) -> Encoded:
    recorder = _Recorder(template.tokenizer)
    processor = copy.copy(template.handler)
    processor.tokenizer = recorder
    watched = ChatTemplate.__new__(ChatTemplate)
    watched.__dict__.update(template.__dict__, handler=processor)
    try:
        output = watched.official(
            [_with_parts(message) for message in messages],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=False,
            **({"processor_kwargs": dict(processor_kwargs)} if processor_kwargs else {}),
        )
    except LookupError as error:  # it looks for the picture of each placeholder
        tokens = ", ".join(_placeholders(template)[0])
        raise ValueError(
            f"the processor finds more placeholders than there are images, videos and sounds ({type(error).__name__}: {error}): "
            f"take {tokens} out of texts and replies."
        ) from error
    columns = dict(output)
    ids = [int(token) for token in _row(columns.pop("input_ids"))]
    columns.pop("attention_mask", None)
    expanded, kwargs = _tokenized(recorder, ids)
    _, places = _find_places(template.tokenizer, expanded, ids, kwargs, np.array([0, len(expanded)]))
    characters, media = _match_any(text, expanded, _placeholders(template), boundaries)
    for name, value in columns.items():
        row = _row(value)
        if row is not value and len(row) == len(ids):
            columns[name] = [int(number) for number in row]
    return Encoded(ids, places, characters, media, columns)


def _row(value: Any) -> Any:
    """Return the only row of a batch of one; the value itself if it is none."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return value[0] if len(shape) == 2 and shape[0] == 1 else value
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) else value


def _tokenized(recorder: _Recorder, ids: list[int]) -> tuple[str, dict[str, Any]]:
    """Return the text that the processor has tokenized, and how."""
    for text, kwargs in recorder.calls:
        texts = [text] if isinstance(text, str) else text
        kept = {name: value for name, value in kwargs.items() if name in ("add_special_tokens",)}
        if isinstance(texts, (list, tuple)) and len(texts) == 1 and isinstance(texts[0], str):
            if list(recorder(texts[0], **kept)["input_ids"]) == ids:
                return texts[0], kept
    raise ValueError(
        "the processor does not let its tokenizer make the ids, so that nobody can tell their characters."
    )


def _with_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose content is a list: of texts, transformers' processors read only the template's way."""
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {**message, "content": list(parts) if isinstance(parts, list) else parts}


def _placeholders(template: ChatTemplate) -> list[list[str]]:
    """Return what a processor may replace: the tokens of media, or else these with what encloses them."""
    owners = (template.handler, template.tokenizer)
    names = [getattr(owner, name, None) for owner in owners for name in _PLACEHOLDERS]
    tokens = list(dict.fromkeys(name for name in names if isinstance(name, str) and name))
    opening, closing = (getattr(template.handler, f"vision_{side}_token", None) for side in ("start", "end"))
    if not opening or not closing:
        return [tokens]
    videos = [
        f"{opening}{token}{closing}" for token in tokens if token == getattr(template.handler, "video_token", None)
    ]
    return [tokens, [*videos, *tokens], [*(f"{opening}{token}{closing}" for token in tokens), *tokens]]


def _match_any(
    text: str, expanded: str, placeholders: Sequence[Sequence[str]], boundaries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each character of an expanded text its place in the text, and which stand for media.

    Raises:
        ValueError: If the texts between the placeholders are not found again, or two media in a row are of different types.
    """
    for tokens in placeholders:
        holders = _find_holders(text, tokens)
        matched = _match(text, expanded, holders)
        if matched is None:
            continue
        for start, end in holders:
            if ((boundaries > start) & (boundaries < end)).any():
                raise ValueError(
                    "two media of different types stand next to each other in the template's text, so that nobody can tell "
                    "their tokens apart. Give them one type, or put a text between them."
                )
        return matched
    raise ValueError("the processor changes more of the text than the placeholders of media.")


def _find_holders(text: str, tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Return the placeholders of a text; those in a row are one."""
    holders: list[tuple[int, int]] = []
    for match in re.finditer("|".join(map(re.escape, tokens)) or r"(?!)", text):
        if holders and holders[-1][1] == match.start():
            holders[-1] = (holders[-1][0], match.end())
        else:
            holders.append(match.span())
    return holders


def _match(text: str, expanded: str, holders: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray] | None:
    pieces: list[np.ndarray] = []
    media: list[np.ndarray] = []
    position = place = 0
    for number, (start, end) in enumerate([*holders, (len(text), len(text))]):
        between = text[position:start]
        found = expanded.find(between, place) if number else 0
        if number == len(holders):
            found = len(expanded) - len(between)
        if found < place or not expanded.startswith(between, found) or (number == 0 and found):
            return None
        if number:
            pieces.append(np.full(found - place, holders[number - 1][0]))
            media.append(np.ones(found - place, bool))
        pieces.append(np.arange(position, start))
        media.append(np.zeros(start - position, bool))
        position, place = end, found + len(between)
    return np.concatenate(pieces), np.concatenate(media)
