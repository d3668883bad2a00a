"""Messages made of blocks and items (Anthropic, OpenAI Responses, Pi) as OpenAI's chat messages."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..weights import STEP_KEY, WEIGHT_KEYS


THINKING = ("thinking", "reasoning")
REDACTED = "redacted_thinking"
CALLS = ("tool_use", "server_tool_use", "toolCall", "function_call", "custom_tool_call")
RESULTS = ("tool_result", "web_search_tool_result", "function_call_output", "custom_tool_call_output")
BLOCKS = frozenset((*THINKING, REDACTED, *CALLS, *RESULTS))
LOST_REASONING = "hidden or encrypted reasoning left out"

_REPLY_ROLES = ("tool", "toolResult", "tool_result")
_MERE_TEXT = ("type", "text", "cache_control", "citations", "annotations", "logprobs")
_USER_SIDE = ("user", "tool", "exit")  # mini-swe-agent ends with how the run ended
_HANDLED = (
    "role",
    "content",
    "type",
    "toolCalls",
    "toolCallId",
    "reasoningContent",
    "reasoning_content",
    "tool_calls",
)


def is_foreign(message: Mapping[str, Any], content: Any) -> bool:
    """Whether a message cannot be read alone: it has blocks of several roles, or is an item without a role.

    Args:
        message: A message, or an item of OpenAI's Responses.
        content: Its content.
    """
    if isinstance(content, list):
        return any(isinstance(block, Mapping) and block.get("type") in BLOCKS for block in content)
    return message.get("role") is None and message.get("type") in BLOCKS


def read_blocks(
    messages: Iterable[Mapping[str, Any]], notes: Counter | None = None, step_key: str | None = STEP_KEY
) -> list[dict[str, Any]]:
    """Return OpenAI's chat messages: roles in turn, calls in `tool_calls`, thoughts in `reasoning_content`.

    What stands in a row on one side is joined: pieces of a reply, texts of the user's. A user's text after the result of a
    tool goes to that result, as a template has one place for both. A system prompt after the beginning is a user's text.

    Args:
        messages: Messages, and items of OpenAI's Responses.
        notes: What was left out, counted; added to.
        step_key: Key of a message that holds the label of its step; None: labels are not read.

    Raises:
        ValueError: If an item is unknown, or messages that are joined are not trained alike.
    """
    joined: list[dict[str, Any]] = []
    keys = WEIGHT_KEYS if step_key is None else (*WEIGHT_KEYS, step_key)
    for message in messages:
        for piece in _pieces(message, keys, notes if notes is not None else Counter()):
            if piece["role"] == "system" and any(previous["role"] != "system" for previous in joined):
                piece["role"] = "user"
            if not joined or not _join(joined[-1], piece, keys):
                joined.append(piece)
    for message in joined:
        message["content"] = _as_text(message["content"])
    return joined


def _pieces(message: Mapping[str, Any], keys: Sequence[str], notes: Counter) -> Iterator[dict[str, Any]]:
    """Yield what one message or item says, a piece for each role; contents are lists of parts.

    `keys`: those that say how much it is trained; each piece has them.
    """
    role, content = message.get("role"), message.get("content")
    if role is None:
        yield from _read_item(message, notes)
        return
    extra = {key: value for key, value in message.items() if key not in _HANDLED and value is not None}
    if role in _REPLY_ROLES:
        yield {**extra, "role": "tool", "content": _parts(content)}
        return
    weight = _weight_of(extra, keys)
    role = "system" if role == "developer" else role
    piece: dict[str, Any] = {**extra, "role": role, "content": []}
    reasoning = [message[key] for key in ("reasoningContent", "reasoning_content") if message.get(key)]
    calls = [_call(call["function"]) for call in message.get("tool_calls") or message.get("toolCalls") or []]
    for block in content if isinstance(content, list) else _parts(content):
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind in THINKING:
            reasoning.append(_thought(block, notes))
        elif kind == REDACTED:
            notes[LOST_REASONING] += 1
        elif kind in CALLS:
            calls.append(_call(block))
        elif kind in RESULTS:
            if role == "assistant":  # a tool that the model's server runs answers within the reply
                yield _with(piece, reasoning, calls)
                piece, reasoning, calls = {**weight, "role": role, "content": []}, [], []
            yield {**weight, "role": "tool", "content": _parts(block.get("content"))}
        elif not isinstance(block, Mapping) or block.get("text") != "":
            piece["content"].append(block)
    if piece["content"] or calls or any(reasoning) or not isinstance(content, list):
        yield _with(piece, reasoning, calls)


def _read_item(item: Mapping[str, Any], notes: Counter) -> Iterator[dict[str, Any]]:
    """Yield an item of OpenAI's Responses that is no message."""
    kind = item.get("type")
    if kind in CALLS:
        yield _with({"role": "assistant", "content": []}, [], [_call(item)])
    elif kind in RESULTS:
        output = item.get("output")
        if isinstance(output, Mapping):
            output = output.get("content", json.dumps(output, ensure_ascii=False))
        yield {"role": "tool", "content": _parts(output)}
    elif kind in THINKING:
        yield _with({"role": "assistant", "content": []}, [_thought(item, notes)], [])
    else:
        raise ValueError(f"expected a message or one of {', '.join(sorted(BLOCKS))}, got {item!r:.80}.")


def _with(piece: dict[str, Any], reasoning: list[str], calls: list[dict[str, Any]]) -> dict[str, Any]:
    text = "\n\n".join(filter(None, reasoning))
    if text:
        piece["reasoning_content"] = text
    if calls:
        piece["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return piece


def _thought(block: Mapping[str, Any], notes: Counter) -> str:
    """Return the text of a thought; of OpenAI's reasoning items what is readable."""
    texts = [block.get("thinking"), block.get("text")]
    for key in ("summary", "content"):
        texts += [part.get("text") for part in block.get(key) or [] if isinstance(part, Mapping)]
    text = "\n\n".join(text for text in texts if isinstance(text, str) and text)
    if not text and (block.get("encrypted_content") or block.get("signature") or block.get("redacted")):
        notes[LOST_REASONING] += 1
    return text


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    given: Any = next((block[key] for key in ("input", "arguments") if block.get(key) is not None), {})
    return {"name": block.get("name"), "arguments": read_arguments(given)}


def read_arguments(given: Any) -> Any:
    """Return the arguments of a call as an object, where they are one or the JSON text of one; else as they are."""
    if not isinstance(given, str):
        return given
    try:
        read = json.loads(given) if given.strip() else {}
    except ValueError:
        read = given
    return read if isinstance(read, dict) else {"input": given}


def _parts(content: Any) -> list[Any]:
    """Return content as a list of parts; it may be changed."""
    if content in (None, ""):
        return []
    return list(content) if isinstance(content, list) else [{"type": "text", "text": content}]


def _join(message: dict[str, Any], piece: dict[str, Any], keys: Sequence[str]) -> bool:
    """Put a piece to the message before it, if they stand on one side; return whether it was."""
    roles = (message["role"], piece["role"])
    if roles[0] != roles[1] and roles != ("tool", "user") or roles == ("tool", "tool"):
        return False
    weights = _weight_of(message, keys), _weight_of(piece, keys)
    if weights[0] != weights[1]:
        raise ValueError(
            f"messages in a row on one side become one, but say different things of what is trained: {weights[0]} "
            f"and {weights[1]}. Give them the same."
        )
    if message["content"] and piece["content"]:
        message["content"].append({"type": "text", "text": "\n\n"})
    message["content"] += piece["content"]
    thoughts = filter(None, (message.get("reasoning_content"), piece.get("reasoning_content")))
    calls = [*message.get("tool_calls", []), *piece.get("tool_calls", [])]
    _with(message, list(thoughts), [call["function"] for call in calls])
    return True


def _weight_of(message: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: message[key] for key in keys if message.get(key) is not None}


def _as_text(parts: list[Any]) -> Any:
    """Return parts as one text where they are nothing else."""
    return "".join(part["text"] for part in parts) if all(map(_is_mere_text, parts)) else parts


def _is_mere_text(part: Any) -> bool:
    """Whether a part is a text without a type of its own; a table gives it other parts' keys, too."""
    if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
        return False
    return all(value is None or key in _MERE_TEXT for key, value in part.items())


def cut_after_last_reply(messages: list[Any], notes: Counter | None = None) -> list[Any]:
    """Return messages up to the last reply; what nobody answered has nothing to train."""
    end = len(messages)
    while end and isinstance(messages[end - 1], Mapping) and messages[end - 1].get("role") in _USER_SIDE:
        end -= 1
    if notes is not None and end and end < len(messages):
        notes["messages after the last reply left out"] += len(messages) - end
    return messages[:end] if 0 < end < len(messages) else messages
