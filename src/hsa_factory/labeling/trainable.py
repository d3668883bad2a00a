"""What training needs of a sample: LLaMA-Factory trains texts, so objects become JSON, and what is no text is named."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .formats import DatasetFormat, Sample, SampleMessage, read_sample
from .rule import MEDIA
from .weights import StepLabels, read_weight


_TOOL_ROLES = ("function", "observation")  # what they say is data as often as text
_PART_KEYS = ("type", "text", *MEDIA)


def check_trainable(sample: Sample, dataset_format: DatasetFormat, tools: str = "tools") -> list[SampleMessage]:
    """Read a sample, from `as_texts`, as training reads it.

    A conversation that training leaves out and counts, such as one that begins with a reply, is none of its errors.

    Args:
        sample: The sample.
        dataset_format: Its format.
        tools: Column of the tools' descriptions.

    Returns:
        Its messages, as `read_sample` returns them.

    Raises:
        ValueError: If training would stop at it; the message names the turn and the key.
    """
    check_characters(sample)
    _check_tools(sample, tools)
    turns = read_sample(sample, dataset_format)
    for turn in turns:
        check_content(turn, dataset_format)
        read_weight(turn, StepLabels(key=None))  # what labels mean is known in training only
    return turns


def as_texts(sample: Any, dataset_format: DatasetFormat, tools: str | None = "tools") -> dict[Any, Any]:
    """Return a sample in which objects that stand for a text are that text.

    These are what a tool returns (an object, a list, a number), a tool call written as an object, and the list of tools:
    all become JSON. A message without one of the keys that others of the sample have gets it, as None.

    Args:
        sample: From a data file.
        dataset_format: Its format.
        tools: Column of the tools' descriptions; None: there is none.

    Raises:
        ValueError: If the sample is no mapping, or holds what is no text where a text belongs; the message names the turn
            and the key.
    """
    if not isinstance(sample, Mapping):
        raise ValueError(f"expected an object, got {sample!r:.80}.")
    return _as_texts(sample, dataset_format, tools)


def _as_texts(sample: Sample, dataset_format: DatasetFormat, tools: Any) -> dict[Any, Any]:
    changed: dict[Any, Any] = {}
    if tools and isinstance(sample.get(tools), (dict, list)):
        changed[tools] = _as_json(sample[tools])
    elif tools:
        _check_text(sample, tools)
    _check_text(sample, dataset_format.system)
    if dataset_format.formatting == "alpaca":
        replies = (
            (dataset_format.chosen, dataset_format.rejected) if dataset_format.ranking else (dataset_format.response,)
        )
        for column in replies:
            _check_text(sample, column)
    else:
        changed |= _messages_as_texts(sample, dataset_format)
    return {**sample, **changed} if changed else dict(sample)


def check_content(turn: SampleMessage, dataset_format: DatasetFormat) -> None:
    """Refuse a message without content, unless its tool calls are the content; a system prompt may be missing.

    Raises:
        ValueError: Naming the turn and the key.
    """
    tag: Any = dataset_format.content_tag
    if turn.source is None or turn.message.role == "system":
        return
    if turn.source.get(tag) is not None or turn.message.tools:
        return
    raise ValueError(f"{turn.where}: {tag!r} is null: give the message a text (an empty one is fine), or remove it.")


def check_roles(turns: Sequence[SampleMessage], dataset_format: DatasetFormat) -> None:
    """Refuse a message whose role the tags of the data set do not name.

    Raises:
        ValueError: Naming the turn and the role.
    """
    roles = dataset_format.roles
    for turn in turns:
        if turn.source is not None and turn.message.role not in roles.values():
            raise ValueError(
                f"{turn.where}: {dataset_format.role_tag} = {turn.message.role!r} is not allowed: one of "
                f"{', '.join(map(repr, roles))} (the tags of the data set)."
            )


def check_characters(value: Any, where: str = "") -> None:
    """Refuse half of a surrogate pair, which JSON can hold but no text.

    Args:
        value: A sample, or what is in it.
        where: Its place in the sample; empty: the sample itself.

    Raises:
        ValueError: Naming the key.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where or 'a key'}: {value[error.start]!r} is half of a character (a surrogate), which no tokenizer "
                "reads; remove it."
            ) from None
    elif isinstance(value, dict):
        for key, inner in value.items():
            check_characters(key)
            check_characters(inner, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            check_characters(inner, f"{where}[{number}]")


def _messages_as_texts(sample: Sample, dataset_format: DatasetFormat) -> dict[Any, Any]:
    """Return the columns of messages that had to be changed."""
    changed: dict[Any, Any] = {}
    column: Any = dataset_format.messages
    if column not in sample:
        raise ValueError(f"{column!r} (the column of messages) is missing; it has {', '.join(map(repr, sample))}.")
    messages = sample[column]
    if isinstance(messages, list) and not _are_texts(messages, dataset_format):
        keys = {key for message in messages if isinstance(message, Mapping) for key in message}
        texts = [_message_as_text(message, keys, dataset_format) for message in messages]
        changed[dataset_format.messages] = texts
    for column in (dataset_format.chosen, dataset_format.rejected) if dataset_format.ranking else ():
        if isinstance(sample.get(column), Mapping):
            changed[column] = _message_as_text(sample[column], set(sample[column]), dataset_format)
    return changed


def _are_texts(messages: list[Any], dataset_format: DatasetFormat) -> bool:
    """Whether every message has a role and a text: by far the most frequent case."""
    role_tag, content_tag = dataset_format.role_tag, dataset_format.content_tag
    for message in messages:
        if type(message) is not dict or role_tag not in message or type(message.get(content_tag)) is not str:
            return False
    return True


def _message_as_text(message: Any, keys: set[Any], dataset_format: DatasetFormat) -> Any:
    """Return a message with a text for what a tool returned or was called with; others as they are."""
    if not isinstance(message, Mapping):
        return message
    role_tag: Any = dataset_format.role_tag
    content_tag: Any = dataset_format.content_tag
    missing = {tag: None for tag in (role_tag, content_tag) if tag in keys and tag not in message}
    if content_tag not in keys and message.get("tool_calls"):
        missing[content_tag] = None
    content = message.get(content_tag)
    if content is None or isinstance(content, str):
        return {**message, **missing} if missing else message

    role = message.get(role_tag)
    role = dataset_format.roles.get(role, role) if isinstance(role, str) else None
    if role not in _TOOL_ROLES or (role == "observation" and is_parts(content)):
        return {**message, **missing} if missing else message
    return {**message, content_tag: _as_json(content), **missing}


def is_parts(content: Any) -> bool:
    """Whether content is a list of parts, not a list that a tool returned."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(
            isinstance(part, str) or (isinstance(part, Mapping) and any(key in part for key in _PART_KEYS))
            for part in content
        )
    )


def _check_text(sample: Sample, column: Any) -> None:
    value = sample.get(column)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{column}: expected a text, got {value!r:.80}.")


def _check_tools(sample: Sample, column: Any) -> None:
    """Refuse a description of tools that no template can read."""
    text = sample.get(column)
    if not text:
        return
    try:
        tools = json.loads(text)
    except ValueError:
        tools = None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"{column}: expected a list of tools, each an object, as JSON; got {text!r:.80}.")


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)  # Parquet knows dates
