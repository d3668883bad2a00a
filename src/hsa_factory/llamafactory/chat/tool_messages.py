"""Tool calls and their replies as a server gets them, made what training makes of them."""

import json
from collections.abc import Sequence
from typing import Any

from ...labeling.formats import DatasetFormat
from ...labeling.matching import Message, MessageTypes
from ...labeling.trajectories.composed import Words, fit_message
from ...typed.text import TypedText
from ..data.alignment import REPLY_JOINT, join_types


REPLIES_KEY = "replies"  # of a message: (number of characters, given type) of each reply that was joined to it
BESIDE_KEY = "beside"  # of a message: `content` beside its calls, and `reasoning_content`
_OPENAI = DatasetFormat(
    "openai", role_tag="role", content_tag="content", assistant_tag="assistant", function_tag="function"
)


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
    """Join replies and their types as the converters do in training (`join_types`).

    Args:
        texts: At least one.
        typings: What the data and the rules say of each.
        default_type: Type of the message if they say nothing.
    """
    semantic_type, spans = join_types([len(text) for text in texts], typings, default_type)
    return TypedText(REPLY_JOINT.join(texts), default_type if semantic_type is None else semantic_type, spans)


def with_readable_arguments(messages: Sequence[dict[str, Any]], template: Any) -> list[dict[str, Any]]:
    """Return messages whose tool calls the template can write.

    OpenAI's clients send the arguments of a call as a text that holds JSON. Most formats write that text; those that
    write one argument after the other need the JSON itself, as it stands in data for training.
    """
    if any(message.get(BESIDE_KEY) for message in messages):
        words = Words(template.thought_words, template.tool_call_words)
        messages = [_with_text_beside(message, words) for message in messages]
    return [_with_readable_arguments(message, template) for message in messages]


def _with_text_beside(message: dict[str, Any], words: Words) -> dict[str, Any]:
    """Return a reply with its thought, text and calls in one text, as in training: all replies of a conversation that has one."""
    reply = {"role": "assistant", "content": message.get("content"), **message.get(BESIDE_KEY, {})}
    if message.get("role") == "function":
        try:
            calls = json.loads(message["content"])
        except ValueError:  # said when it is encoded
            return message
        reply |= {
            "content": message.get(BESIDE_KEY, {}).get("content"),
            "tool_calls": [{"function": call} for call in calls],
        }
    elif BESIDE_KEY not in message:
        return message
    rest = {key: value for key, value in message.items() if key != BESIDE_KEY}
    return {**rest, "content": fit_message(reply, _OPENAI, words)["content"]}


def _with_readable_arguments(message: dict[str, Any], template: Any) -> dict[str, Any]:
    if message.get("role") != "function" or not isinstance(message.get("content"), str):
        return message
    words = {"thought_words": template.thought_words, "tool_call_words": template.tool_call_words}
    try:
        template.format_function.apply(content=str(message["content"]), **words)
    except (AttributeError, TypeError):  # a text has no items
        try:
            calls = json.loads(message["content"])
            calls = calls if isinstance(calls, list) else [calls]
            calls = [{**call, "arguments": json.loads(call["arguments"])} for call in calls]
            return {**message, "content": json.dumps(calls, ensure_ascii=False)}
        except (ValueError, TypeError, KeyError, RecursionError):
            return message
    except Exception:  # what is wrong with it is said when it is encoded
        return message
    return message
