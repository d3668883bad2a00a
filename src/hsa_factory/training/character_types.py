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
    _type_parts_of_media(types, layout, conversation)
    _type_contents(types, layout, conversation)
    _type_between_tools(types, layout, conversation)
    for message, facts in enumerate(conversation.facts):
        if facts.parts is not None:
            _type_gaps(types, layout, message, conversation, reply_starts)
    return types


def _type_contents(types: np.ndarray, layout: Layout, conversation: Conversation) -> None:
    """Type what was taken from messages and from descriptions of tools. Role names and the like are parts of headers."""
    rendering = layout.rendering
    bases = np.array([*(facts.semantic_type for facts in conversation.facts), 0], np.uint8)
    is_own = layout.speakers != NOWHERE
    types[is_own] = bases[layout.speakers[is_own]]
    types[_is_of_tools(layout)] = conversation.tools_type
    for message, facts in enumerate(conversation.facts):
        if facts.parts is None:
            continue
        places = np.flatnonzero(layout.speakers == message)
        leaves = rendering.leaves[places]
        for leaf in np.unique(leaves).tolist():
            own = places[leaves == leaf]
            types[own] = facts.parts.types_at(rendering.sources.leaves[leaf][1], rendering.offsets[own])


def _is_of_tools(layout: Layout) -> np.ndarray:
    sources = layout.rendering.sources.leaves
    return np.array([*(message == TOOLS for message, _ in sources), False])[layout.rendering.leaves]


def opened_by(layout: Layout, conversation: Conversation, reply_starts: dict[int, int]) -> np.ndarray:
    """Return the message that each character belongs to, (characters,) int32: the opening of a reply to the one before."""
    owners = layout.writers.copy()
    for reply, begin in reply_starts.items():
        start = layout.first(reply)
        if start and not conversation.facts[layout.writers[start - 1]].is_reply:
            owners[start:begin] = layout.writers[start - 1]
    return owners


def _type_parts_of_media(types: np.ndarray, layout: Layout, conversation: Conversation) -> None:
    """Type what the template writes for an image, a video or an audio clip that has a type of its own."""
    rendering = layout.rendering
    for block, (message, part) in enumerate(rendering.sources.blocks):
        parts = conversation.facts[message].parts
        if part is None or parts is None:
            continue
        types[(rendering.blocks == block)] = parts.type_of_part(part)


def _type_between_tools(types: np.ndarray, layout: Layout, conversation: Conversation) -> None:
    """Type what the template writes between names and texts of tools as these."""
    leaves, is_tool = layout.rendering.leaves, _is_of_tools(layout)
    places = np.flatnonzero(is_tool)
    foreign = np.concatenate([[0], np.cumsum((leaves != NOWHERE) & ~is_tool)])
    for before, after in zip(places[:-1].tolist(), places[1:].tolist()):
        if after - before > 1 and foreign[before] == foreign[after]:
            types[before + 1 : after] = conversation.tools_type


def _type_gaps(
    types: np.ndarray, layout: Layout, message: int, conversation: Conversation, reply_starts: dict[int, int]
) -> None:
    """Type what the template writes between the texts of a message, where the message itself has it there."""
    parts = conversation.facts[message].parts
    first = layout.first(message)
    if parts is None or first is None:
        return
    start, end = max(first, reply_starts.get(message, 0)), layout.end(message)
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
