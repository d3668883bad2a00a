"""Samples in formats that LLaMA-Factory does not read, or reads in part, made into ones that it reads whole."""

import json
from collections import Counter
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ..formats import DatasetFormat, Sample
from ..weights import STEP_KEY
from . import sessions, swe_agent
from .blocks import cut_after_last_reply, is_foreign, read_blocks
from .composed import DEFAULT_WORDS, Words, fit_message, must_compose, needs_fitting


MESSAGE_COLUMNS = ("messages", "conversations", "trajectory", "conversation")
MESSAGES = "messages"  # the column of a sample that was in no column of messages
FAMILIES: tuple[ModuleType, ...] = (swe_agent, sessions)
_FAMILY_COLUMNS = frozenset(("history", "trajectory", sessions.EVENTS_KEY))


def normalise(
    sample: Sample,
    dataset_format: DatasetFormat,
    words: Words = DEFAULT_WORDS,
    notes: Counter | None = None,
    step_key: str | None = STEP_KEY,
) -> Sample:
    """Return a sample whose messages LLaMA-Factory can read whole in a data set's format.

    What that changes: messages given as a JSON text, as a trajectory of SWE-agent's or a session's events; blocks and items of
    Anthropic's and OpenAI's; messages after the last reply of mini-swe-agent's trajectories; thoughts in a key of their own
    and text beside tool calls, which LLaMA-Factory leaves out; `developer`, a function's reply under the role `function`, `function_call`; `loss: false`, which becomes weight 0.

    Args:
        sample: Any sample.
        dataset_format: The data set's; the messages returned have its keys and roles.
        words: What the template puts around thoughts and calls.
        notes: What was changed and left out, counted; added to.
        step_key: Key of a message that holds the label of its step; None: labels are not read.

    Returns:
        The sample itself if there is nothing to change.

    Raises:
        ValueError: If the sample is no mapping or a message cannot be read; the message names the turn.
    """
    if not isinstance(sample, Mapping):
        raise ValueError(f"expected an object, got {sample!r:.80}.")
    if dataset_format.formatting == "alpaca":
        return sample
    column = dataset_format.messages
    changed: dict[Any, Any] = {}
    messages = sample.get(column)
    if not isinstance(messages, list):
        sample, is_trajectory = _unwrap_at(sample, column, notes)
        messages = sample.get(column)
        if is_trajectory:
            changed[column] = _write_common(sample[column], dataset_format, words, notes)
            messages = None
    if isinstance(messages, list):
        ended = cut_after_last_reply(messages, notes) if sample.get("trajectory_format") else messages
        fitted = _fit_all(ended, dataset_format, words, notes, step_key)
        if fitted is not messages:
            changed[column] = fitted
    if dataset_format.ranking:
        for name in (dataset_format.chosen, dataset_format.rejected):
            if isinstance(sample.get(name), Mapping):
                (reply, *more) = _fit_all([sample[name]], dataset_format, words, notes, step_key)
                if reply is not sample[name] and not more:
                    changed[name] = reply
    for name, read in ((dataset_format.system, _join_texts), ("tools", _read_tools)):
        if name is not None and isinstance(sample.get(name), list):
            value = read(sample[name])
            if value is not sample[name]:
                changed[name] = value
    return {**sample, **changed} if changed else sample


def unwrap(sample: Sample) -> Sample:
    """Return a sample with a list of messages, where its messages are the text of one, or a trajectory.

    Raises:
        ValueError: If a text is not JSON.
    """
    for column in MESSAGE_COLUMNS:
        value = sample.get(column)
        if isinstance(value, list) and (column != "trajectory" or not swe_agent.detect(sample)):
            return sample
        if _is_json_list(value):
            return _unwrap_at(sample, column)[0]
    return _unwrap_at(sample, MESSAGES)[0]


def _unwrap_at(sample: Sample, column: str | None, notes: Counter | None = None) -> tuple[Sample, bool]:
    """Return a sample with a list of messages in a column, and whether OpenAI's messages were made of a trajectory."""
    value = sample.get(column)
    if isinstance(value, str) and _is_json_list(value):
        return {**sample, column: _parse(value, str(column))}, False
    for family in FAMILIES:
        if family.detect(sample):
            rest = {name: value for name, value in sample.items() if name not in _FAMILY_COLUMNS}
            return {**rest, column: family.to_messages(sample, notes)}, True
    return sample, False


def _is_json_list(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip()[:1] == "["


def _parse(text: str, column: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{column}: the text is no JSON list: {error}") from None


def _fit_all(
    messages: list[Any], dataset_format: DatasetFormat, words: Words, notes: Counter | None, step_key: str | None
) -> list[Any]:
    """Return messages that all fit the format; the same list if they do."""
    if not needs_fitting(messages, dataset_format):
        return messages
    if _must_be_joined(messages, dataset_format):
        try:
            common = [_with_common_keys(message, dataset_format) for message in messages]
            joined = read_blocks(common, notes, step_key)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"a block or item of the messages cannot be read ({error!r})") from None
        return _write_common(joined, dataset_format, words, notes)
    compose = any(isinstance(message, Mapping) and must_compose(message, dataset_format) for message in messages)
    return _fit_each(messages, dataset_format, words, notes, compose)


def _write_common(
    messages: list[dict[str, Any]], dataset_format: DatasetFormat, words: Words, notes: Counter | None
) -> list[Any]:
    """Return OpenAI's messages with a format's keys and roles, all calls as text: a table holds calls of any arguments."""
    return _fit_each(
        [_with_keys_of(message, dataset_format) for message in messages], dataset_format, words, notes, True
    )


def _fit_each(
    messages: list[Any], dataset_format: DatasetFormat, words: Words, notes: Counter | None, compose: bool
) -> list[Any]:
    fitted = []
    for number, message in enumerate(messages):
        try:
            fitted.append(fit_message(message, dataset_format, words, notes, compose))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"turn {number}: a tool call cannot be read ({error!r})") from None
    return fitted


def _must_be_joined(messages: list[Any], dataset_format: DatasetFormat) -> bool:
    """Whether messages have to be read together: blocks, items, or a developer's message after the first."""
    for number, message in enumerate(messages):
        if isinstance(message, Mapping):
            if is_foreign(message, message.get(dataset_format.content_tag)):
                return True
            if number and message.get(dataset_format.role_tag) == "developer":
                return "developer" not in dataset_format.roles
    return False


_COMMON_ROLES = {"observation": "tool", "function": "assistant"}


def _with_common_keys(message: Any, dataset_format: DatasetFormat) -> dict[str, Any]:
    """Return a message with OpenAI's keys and roles."""
    if not isinstance(message, Mapping):
        raise TypeError(f"expected a message, got {message!r:.80}")
    common = {key: value for key, value in message.items() if value is not None}
    if dataset_format.content_tag in common:
        common["content"] = common.pop(str(dataset_format.content_tag))
    if dataset_format.role_tag in common:
        role = common.pop(str(dataset_format.role_tag))
        role = dataset_format.roles.get(role, role)
        common["role"] = _COMMON_ROLES.get(role, role)
    return common


def _with_keys_of(message: dict[str, Any], dataset_format: DatasetFormat) -> dict[str, Any]:
    """Return one of OpenAI's messages with a format's keys and roles."""
    role = "observation" if message["role"] == "tool" else message["role"]
    tag = getattr(dataset_format, f"{role}_tag", role)
    if tag is None:
        raise ValueError(f"the data set's tags have no {role}_tag: a `tags` block must name all of them")
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    return {str(dataset_format.role_tag): tag, str(dataset_format.content_tag): message["content"], **rest}


def _join_texts(blocks: list[Any]) -> Any:
    """Return a system prompt given as blocks of text as one."""
    texts: list[Any] = [block.get("text") if isinstance(block, Mapping) else block for block in blocks]
    return "\n\n".join(texts) if all(isinstance(text, str) for text in texts) else blocks


def _read_tools(tools: list[Any]) -> Any:
    """Return Anthropic's descriptions of tools as a JSON text of OpenAI's; others as they are."""
    if not any(isinstance(tool, Mapping) and tool.get("input_schema") for tool in tools):
        return tools
    read = [
        {
            "name": tool.get("name"),
            "description": tool.get("description") or "",
            "parameters": _without_nulls(tool.get("input_schema") or {}),
        }
        for tool in tools
    ]
    return json.dumps(read, ensure_ascii=False)


def _without_nulls(value: Any) -> Any:
    """Return a value without what a table has put into it for other rows."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return list(map(_without_nulls, value)) if isinstance(value, list) else value
