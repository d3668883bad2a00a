"""Rotary positions of a conversation: they follow from what its cache has seen, never from what the model remembers.

An M-RoPE model shifts the text after an image, and keeps by how much (`rope_deltas`) for the conversation that it has read
last. With an `HSACache` that is not looked at: the cache knows where each row goes on, and the positions are given to the
model, which gets its own memory back afterwards.
"""

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .cache.hsa_cache import HSACache


GRIDS = ("image_grid_thw", "video_grid_thw")


def has_mrope(entry: Any) -> bool:
    """Whether a model (the one with `get_rope_index`) has positions of three axes for images and videos."""
    return hasattr(entry, "rope_deltas")


def takes_media_types(entry: Any) -> bool:
    """Whether an M-RoPE model tells images and videos from text by `mm_token_type_ids`; the others look at the tokens."""
    return "mm_token_type_ids" in _parameters(type(entry).get_rope_index)


@functools.cache
def _parameters(function: Any) -> frozenset[str]:
    """Return the names of what a function takes; to ask for them is slow enough to be seen in a step of decoding."""
    return frozenset(inspect.signature(function).parameters)


def text_axes(entry: Any) -> int:
    """Return how many of the axes time, height, width, the last ones, say where text after an image or video goes on.

    A long video reaches further in time than in height and width. Most models let the text follow those two (2), the
    others, which count sound in the same way, all three (3).
    """
    return 2 if takes_media_types(entry) else 3


@contextmanager
def own_rope_deltas(entry: Any) -> Iterator[None]:
    """Give a model back what it remembers of conversations without an `HSACache`."""
    own = getattr(entry, "rope_deltas", None)
    try:
        yield
    finally:
        if has_mrope(entry):
            entry.rope_deltas = own


def text_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return each token's place in its row, padding not counted, (B, L)."""
    return (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 0)


def conversation_positions(
    entry: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, inputs: dict[str, Any], cache: HSACache
) -> torch.Tensor:
    """Return the positions that one forward over a whole conversation would give its tokens.

    transformers gives all tokens after a cache the positions of text.

    Args:
        entry: The model that is called with them.
        input_ids: (B, L), the whole conversation.
        attention_mask: (B, L).
        inputs: What the processor makes of it.
        cache: What of it has been seen; its new tokens go on from there.

    Returns:
        (B, L), or of M-RoPE (3, B, L) position ids.
    """
    if has_mrope(entry) and any(inputs.get(grid) is not None for grid in GRIDS):
        positions = media_positions(entry, input_ids, attention_mask, inputs)
    else:
        positions = text_positions(attention_mask)
        positions = positions.expand(3, -1, -1) if has_mrope(entry) else positions
    seen = cache.get_seq_length()
    if seen:
        new = _begin_at(positions[..., seen:], attention_mask[:, seen:] != 0, cache.next_rope_positions)
        positions = torch.cat([positions[..., :seen], new], dim=-1)
    return positions


def forward_positions(entry: Any, name: str, inputs: dict[str, Any], cache: HSACache) -> torch.Tensor | None:
    """Return the positions of a forward that an `HSACache` has begun, if the model would not find them itself.

    Args:
        entry: The model that is called.
        name: Of the model, for messages.
        inputs: The forward's arguments; new images only.
        cache: What has been seen before.

    Returns:
        (B, Q), or of M-RoPE (3, B, Q); None: they are given, or the model's own are right.

    Raises:
        ValueError: If images, videos or sound are new and cannot be placed.
    """
    input_ids = inputs.get("input_ids")
    if inputs.get("position_ids") is not None or not (cache.get_seq_length() or input_ids is None):
        return None
    text = cache.count_on()
    if not has_mrope(entry):
        return text
    if input_ids is None or all(inputs.get(grid) is None for grid in GRIDS):
        return text.expand(3, -1, -1)

    types = inputs.get("mm_token_type_ids")
    if types is None and takes_media_types(entry):
        raise ValueError(
            f"{name} goes on from an HSACache with images or videos, but mm_token_type_ids is missing, which tells them "
            "from text: pass it as the processor returns it."
        )
    number, is_real = input_ids.shape[1], cache.are_new_real
    given = inputs if types is None else {**inputs, "mm_token_type_ids": types[:, -number:]}
    return _begin_at(media_positions(entry, input_ids, is_real.long(), given), is_real, cache.next_rope_positions)


def media_positions(entry: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, inputs: dict[str, Any]) -> Any:
    """Return a model's M-RoPE positions, (3, B, L), of texts with images or videos that begin at 0.

    Args:
        entry: The model that has `get_rope_index`.
        input_ids: (B, L).
        attention_mask: (B, L).
        inputs: What the processor makes of them.

    Raises:
        ValueError: If the model does not find them by itself.
    """
    other = [name for name in ("video_grid_thw", "input_features") if inputs.get(name) is not None]
    if other and not takes_media_types(entry):
        raise ValueError(
            f"{type(entry).__name__} cannot go on from an HSACache with {other[0]}, whose positions it finds by itself in one "
            "forward only: begin a new cache."
        )
    known = _parameters(type(entry).get_rope_index) - {"input_ids"}
    given = {name: value for name, value in inputs.items() if name in known}
    return entry.get_rope_index(input_ids, **given | {"attention_mask": attention_mask})[0].long()


def _begin_at(positions: torch.Tensor, is_real: torch.Tensor, start: torch.Tensor | None) -> torch.Tensor:
    """Shift each row's positions, (…, B, Q), so that its first real token has the position `start`, (B, 1)."""
    if start is None:
        return positions
    first = is_real.byte().argmax(dim=1, keepdim=True).expand(*positions.shape[:-1], 1)
    begins = positions.gather(-1, first)
    begins = begins.amin(dim=0) if begins.dim() == 3 else begins
    return (positions + (start - begins)).clamp(min=0)
