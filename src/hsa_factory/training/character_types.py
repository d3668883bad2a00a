"""The semantic type of each character of a rendered conversation."""

import numpy as np

from ..semantics import SemanticType
from .layout import Layout
from .messages import Conversation
from .traced_text import NOWHERE
from .traced_values import TOOLS, Path


def type_characters(
    layout: Layout, conversation: Conversation, prompt_end: int, reply_starts: dict[int, int]
) -> np.ndarray:
    """Return the type of each character, (characters,) uint8.

    What was taken from a message has the type that it has there; what the template writes has that of the message it stands in.
    The opening of a reply stands in the message before, as in LLaMA-Factory.

    Args:
        layout: The conversation.
        conversation: What is known of its messages.
        prompt_end: End of a system prompt that the template writes by itself: it is GLOBAL.
        reply_starts: Where each reply begins.
    """
    bases = np.array([facts.semantic_type for facts in conversation.facts], np.uint8)
    types = bases[opened_by(layout, conversation, reply_starts)]
    types[:prompt_end] = int(SemanticType.GLOBAL)
    rendering = layout.rendering
    _type_parts_of_media(types, layout, conversation)
    for leaf in np.unique(rendering.leaves).tolist():
        if leaf == NOWHERE:
            continue
        message, path = rendering.sources.leaves[leaf]
        places = np.flatnonzero(rendering.leaves == leaf)
        if message == TOOLS:
            types[places] = conversation.tools_type
            continue
        facts = conversation.facts[message]
        if not layout.speakers[places[0]] == message:
            continue  # a role name and the like is a part of the header
        if facts.parts is None:
            types[places] = facts.semantic_type
        else:
            types[places] = facts.parts.types_at(path, rendering.offsets[places])
    for message, facts in enumerate(conversation.facts):
        if facts.parts is not None:
            _type_gaps(types, layout, message, conversation, reply_starts)
    return types


def opened_by(layout: Layout, conversation: Conversation, reply_starts: dict[int, int]) -> np.ndarray:
    """Return the message that each character belongs to, (characters,) int32: the opening of a reply to the one before."""
    writers = layout.writers.copy()
    for reply, begin in reply_starts.items():
        start = layout.first(reply)
        if reply and start is not None and not conversation.facts[reply - 1].is_reply:
            writers[start:begin] = reply - 1
    return writers


def _type_parts_of_media(types: np.ndarray, layout: Layout, conversation: Conversation) -> None:
    """Type what the template writes for an image, a video or an audio clip that has a type of its own."""
    rendering = layout.rendering
    for block, (message, part) in enumerate(rendering.sources.blocks):
        parts = conversation.facts[message].parts
        if part is None or parts is None:
            continue
        types[(rendering.blocks == block)] = parts.type_of_part(part)


def _type_gaps(
    types: np.ndarray, layout: Layout, message: int, conversation: Conversation, reply_starts: dict[int, int]
) -> None:
    """Type what the template writes between the texts of a message, where the message itself has it there."""
    parts = conversation.facts[message].parts
    places = np.flatnonzero(layout.writers == message)
    if parts is None or not len(places):
        return
    start, end = max(int(places[0]), reply_starts.get(message, 0)), int(places[-1]) + 1
    blocks, sources = layout.rendering.blocks, layout.rendering.sources.blocks
    own = start + np.flatnonzero(layout.speakers[start:end] == message)
    bounds = [start - 1, *own.tolist(), end]
    for before, after in zip(bounds, bounds[1:]):
        if after - before < 2 or any(
            sources[b][1] is not None for b in set(blocks[before + 1 : after].tolist()) if b >= 0
        ):
            continue
        left = _character(layout, before) if before >= start else None
        right = _character(layout, after) if after < end else None
        if left is None and right is None:
            continue
        kinds = parts.types_between(left, right, layout.text[before + 1 : after])
        types[before + 1 : after] = np.frombuffer(kinds, np.uint8)


def _character(layout: Layout, place: int) -> tuple[Path, int]:
    rendering = layout.rendering
    return rendering.sources.leaves[rendering.leaves[place]][1], int(rendering.offsets[place])
