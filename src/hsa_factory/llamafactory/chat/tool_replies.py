"""Replies to parallel calls: one message for the template, several for types and rules, as in training."""

from collections.abc import Sequence
from typing import Any

from ...labeling.matching import Message, MessageTypes
from ...typed.text import TypedText
from ..data.converter import REPLY_JOINT


REPLIES_KEY = "replies"  # of a message: (number of characters, given type) of each reply that was joined to it


def split_replies(message: dict[str, Any]) -> list[Message]:
    """Return a message as rules see it in the data: each reply of parallel calls by itself."""
    role, text, given = message["role"], message["content"], message.get("semantic_type")
    replies = message.get(REPLIES_KEY)
    if not replies:
        return [Message(role, text, given)]
    split, position = [], 0
    for length, kind in replies:
        split.append(Message(role, text[position : position + length], kind))
        position += length + len(REPLY_JOINT)
    return split


def join_replies(texts: Sequence[str], typings: Sequence[MessageTypes], default_type: int) -> TypedText:
    """Join replies and their types as the converters do in training.

    The message's type is that of the replies which remembers most; it is the type of all, unless parts have their own.

    Args:
        texts: At least one.
        typings: What the data and the rules say of each.
        default_type: Type of the message if they say nothing.
    """
    base = min((typing.semantic_type for typing in typings if typing.semantic_type is not None), default=default_type)
    if not any(typing.spans for typing in typings):
        return TypedText(REPLY_JOINT.join(texts), base)
    joined = TypedText("", base)
    for number, (text, typing) in enumerate(zip(texts, typings)):
        own = base if typing.semantic_type is None else typing.semantic_type
        joined = joined + TypedText(REPLY_JOINT if number else "", base) + TypedText(text, own, typing.spans)
    return TypedText(str(joined), base, joined.spans)
