"""One message put into a form that LLaMA-Factory reads whole: thoughts, text and tool calls as one text."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..formats import DatasetFormat
from ..parts import SPANS_KEY
from .blocks import BLOCKS, read_arguments


REASONING_KEYS = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "reasoning_text",
    "reasoning_details",
    "thinking_blocks",
)
_READABLE = ("text", "summary", "thinking")  # of an item of a list of thoughts
KEPT_REASONING = "replies whose reasoning was put before their text"
KEPT_TEXT = "tool calls whose text was kept before them"
LOST_TEXT = "tool calls whose text or reasoning was left out: the tags of the data set name no function_tag"
NOT_TRAINED = "replies kept out of the loss by `loss: false`"

_SPECIAL = frozenset(("tool_calls", "function_call", "loss", *REASONING_KEYS))
_WRITTEN = ("tool_calls", "function_call", *REASONING_KEYS)


class Words(NamedTuple):
    """What a template puts around thoughts and tool calls; by these LLaMA-Factory finds the call in a text."""

    thought: tuple[str, str] = ("<think>\n", "\n</think>\n\n")
    call: tuple[str, str] = ("<tool_call>", "</tool_call>")


DEFAULT_WORDS = Words()


def needs_fitting(messages: list[Any], dataset_format: DatasetFormat) -> bool:
    """Whether LLaMA-Factory would refuse a message, or leave some of it out. Quick where it reads all of them whole."""
    role_tag, content_tag, roles = dataset_format.role_tag, dataset_format.content_tag, dataset_format.roles
    for message in messages:
        if type(message) is not dict:
            continue
        role = message.get(role_tag)
        is_plain = type(message.get(content_tag)) is str and type(role) is str and role in roles
        if not (is_plain and _SPECIAL.isdisjoint(message)) and _needs_fitting(message, role, dataset_format):
            return True
    return False


def _needs_fitting(message: dict[Any, Any], role: Any, dataset_format: DatasetFormat) -> bool:
    if not isinstance(role, str) or role not in dataset_format.roles:
        return other_role(message, role) is not None or "type" in message
    content = message.get(dataset_format.content_tag)
    if type(content) is list and any(isinstance(part, dict) and part.get("type") in BLOCKS for part in content):
        return True
    return must_compose(message, dataset_format) or _is_untrained(message)


def must_compose(message: Mapping[Any, Any], dataset_format: DatasetFormat) -> bool:
    """Whether a reply has parts that LLaMA-Factory would leave out."""
    if dataset_format.roles.get(message.get(dataset_format.role_tag, "")) not in ("assistant", "function"):
        return False
    content = message.get(dataset_format.content_tag)
    if _reasoning(message, content):
        return True
    if message.get("function_call"):
        return True
    return bool(message.get("tool_calls")) and (bool(content) or dataset_format.formatting != "openai")


def other_role(message: Mapping[str, Any], role: Any) -> str | None:
    """Return the role that a name means which the tags of a data set need not name; None: it is no such name."""
    if role == "developer":
        return "system"
    return "observation" if role == "function" and message.get("name") else None


def fit_message(
    message: Any, dataset_format: DatasetFormat, words: Words, notes: Counter | None = None, compose: bool = True
) -> Any:
    """Return a message that LLaMA-Factory reads whole.

    Args:
        message: With the keys and roles of the format.
        dataset_format: The data set's.
        words: What the template puts around thoughts and calls.
        notes: What was changed, counted; added to.
        compose: Whether calls become text.

    Raises:
        ValueError: If a call is none.
    """
    if not isinstance(message, Mapping):
        return message
    notes = Counter() if notes is None else notes
    role_tag = str(dataset_format.role_tag)
    name = message.get(role_tag)
    fitted = dict(message)
    if name not in dataset_format.roles:
        role = other_role(message, name)
        fitted[role_tag] = name if role is None else getattr(dataset_format, f"{role}_tag")
    if _is_untrained(message) and dataset_format.roles.get(str(name)) in ("assistant", "function"):
        fitted["weight"] = 0
        notes[NOT_TRAINED] += 1
    if compose and (must_compose(message, dataset_format) or message.get("tool_calls")):
        fitted = _compose(fitted, dataset_format, words, notes)
    return fitted


def _is_untrained(message: Mapping[str, Any]) -> bool:
    return message.get("loss") is False and message.get("weight") is None


def _reasoning(message: Mapping[str, Any], content: Any) -> str:
    """Return the thought in a key of its own; empty where the text has it as well."""
    for key in REASONING_KEYS:
        value = _readable(message.get(key))
        if value.strip():
            return "" if isinstance(content, str) and "<think" in content else value
    return ""


def _readable(thought: Any) -> str:
    """Return a thought that is a text, or a list of items with texts (OpenRouter's, LiteLLM's), as one text."""
    if not isinstance(thought, list):
        return thought if isinstance(thought, str) else ""
    items = [item for item in thought if isinstance(item, Mapping)]
    texts = (item[key] for item in items for key in _READABLE if isinstance(item.get(key), str))
    return "\n\n".join(filter(None, texts))


def _compose(message: dict[str, Any], dataset_format: DatasetFormat, words: Words, notes: Counter) -> dict[str, Any]:
    """Write thought, text and calls of a reply one after the other."""
    content_tag = str(dataset_format.content_tag)
    content = message.get(content_tag)
    calls = [call["function"] for call in message.get("tool_calls") or []]
    calls += [message["function_call"]] if message.get("function_call") else []
    reasoning = _reasoning(message, content)
    if calls and dataset_format.function_tag is None:
        _count(notes, LOST_TEXT, content or reasoning)
        return message

    before = f"{words.thought[0]}{reasoning.strip()}{words.thought[1]}" if reasoning else ""
    after = _write_calls(calls, words) if calls else ""
    if after and content:
        ends = content if isinstance(content, str) else ""
        after = after if ends.endswith("\n") else f"\n{after}"
    _count(notes, KEPT_REASONING, reasoning)
    _count(notes, KEPT_TEXT, calls and content)
    composed: dict[str, Any] = {key: value for key, value in message.items() if key not in _WRITTEN}
    if isinstance(content, list):
        parts = [{"type": "text", "text": before}, *content, {"type": "text", "text": after}]
        composed[content_tag] = [part for part in parts if not isinstance(part, Mapping) or part.get("text") != ""]
    else:
        composed[content_tag] = f"{before}{content or ''}{after}"
    if calls:
        composed[str(dataset_format.role_tag)] = dataset_format.function_tag
    if message.get(SPANS_KEY) and not isinstance(content, list):
        # Spans of a call counted the characters of the call, as its text was not read.
        start = len(before) + (len(content or "") + after.index(words.call[0]) + len(words.call[0]) if calls else 0)
        composed[SPANS_KEY] = [
            {**span, "start": span["start"] + start, "end": span["end"] + start} for span in message[SPANS_KEY]
        ]
    return composed


def _count(notes: Counter, note: str, happened: Any) -> None:
    if happened:
        notes[note] += 1


def _write_calls(calls: list[Any], words: Words) -> str:
    """Return calls as LLaMA-Factory's templates read them off a text."""
    listed = [{"name": call["name"], "arguments": read_arguments(call.get("arguments") or {})} for call in calls]
    text = json.dumps(listed, ensure_ascii=False)
    # In JSON \/ is a slash, too: a closing word within an argument must not end the call.
    return words.call[0] + text.replace(words.call[1], words.call[1].replace("/", "\\/")) + words.call[1]
