"""The three data formats of LLaMA-Factory, read as conversations; LLaMA-Factory itself is not needed."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

from ..semantics import SemanticType
from .matching import Message, MessageTypes, PatternTimeout, label_messages
from .parts import SPANS_KEY, TYPE_KEY, join_parts, read_spans
from .rule_set import RuleSet


FORMATS = ("alpaca", "sharegpt", "openai")
SAMPLE_TYPES_KEY = "semantic_types"  # of a sample: types of the texts that are no messages of their own
_COLUMNS = ("prompt", "query", "response", "history", "messages", "system", "chosen", "rejected")
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")


Sample = Mapping[Any, Any]  # a column that a format does not name is looked up as None, which no sample has


@dataclass(frozen=True)
class DatasetFormat:
    """Which columns and keys of a data set hold what, as in an entry of ``dataset_info.json``."""

    formatting: str = "alpaca"
    ranking: bool = False
    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    system: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    role_tag: str | None = "from"
    content_tag: str | None = "value"
    user_tag: str | None = "human"
    assistant_tag: str | None = "gpt"
    observation_tag: str | None = "observation"
    function_tag: str | None = "function_call"
    system_tag: str | None = "system"
    semantic_tag: str | None = None

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> "DatasetFormat":
        """Read an entry of ``dataset_info.json`` as LLaMA-Factory does.

        A block `columns` or `tags` replaces all of its defaults.
        """
        values = {name: entry[name] for name in ("formatting", "ranking") if name in entry}
        if "columns" in entry:
            values |= {name: entry["columns"].get(name) for name in _COLUMNS}
        tags = dict(entry.get("tags") or {})
        values["semantic_tag"] = tags.pop("semantic_tag", None)
        if tags:
            values |= {name: tags.get(name) for name in _TAGS}
        if values.get("formatting", "alpaca") not in FORMATS:
            raise ValueError(f"formatting = {values['formatting']!r} is not allowed: one of {', '.join(FORMATS)}.")
        return cls(**values)

    @classmethod
    def from_attributes(cls, attributes: Any) -> "DatasetFormat":
        """Take over LLaMA-Factory's `DatasetAttr`."""
        values: dict[str, Any] = {field.name: getattr(attributes, field.name, None) for field in fields(cls)}
        return cls(**values)

    @cached_property
    def roles(self) -> dict[str, str]:
        """The role that each value of `role_tag` means."""
        named = {
            self.user_tag: "user",
            self.assistant_tag: "assistant",
            self.observation_tag: "observation",
            self.function_tag: "function",
            self.system_tag: "system",
        }
        return {value: role for value, role in named.items() if value is not None}


class SampleMessage(NamedTuple):
    """One message of a conversation, and where it comes from.

    Attributes:
        message: As rules see it.
        where: What an error calls it.
        source: The mapping of the sample that holds it; None: a column of the sample does.
        media: (place in the text, kind, file) of the parts that name a file.
        number: Its place among the messages of the sample; -1: it is none of them.
    """

    message: Message
    where: str
    source: Mapping[str, Any] | None = None
    media: tuple[tuple[int, str, Any], ...] = ()
    number: int = -1


def read_sample(sample: Sample, dataset_format: DatasetFormat) -> list[SampleMessage]:
    """Return a sample's messages in order: the system message or column, if any, then the others.

    With `ranking`, the chosen and the rejected reply stand at the end. A role that the format does not name stays as it
    is in the data.

    Raises:
        ValueError: If the sample does not have the format, or a type in it is not valid; the message names the turn.
    """
    return (
        _read_alpaca(sample, dataset_format)
        if dataset_format.formatting == "alpaca"
        else _read_messages(sample, dataset_format)
    )


def type_sample(
    turns: Sequence[SampleMessage],
    dataset_format: DatasetFormat,
    rules: RuleSet | None,
    matches: Counter | None = None,
) -> list[MessageTypes]:
    """Type the turns of a sample, as `label_messages` does.

    The chosen and the rejected reply of a ranking are each typed as the last message of a conversation.

    Raises:
        PatternTimeout: Naming the turn.
    """
    messages = [turn.message for turn in turns]
    try:
        if dataset_format.ranking and len(messages) > 2:
            rejected = label_messages([*messages[:-2], messages[-1]], rules)[-1]
            return [*label_messages(messages[:-1], rules, matches), rejected]
        return label_messages(messages, rules, matches)
    except PatternTimeout as timeout:
        raise PatternTimeout(f"{turns[timeout.index].where}: {timeout}") from None


def _read_messages(sample: Sample, dataset_format: DatasetFormat) -> list[SampleMessage]:
    messages = sample.get(dataset_format.messages)
    if not isinstance(messages, list):
        raise ValueError(f"{dataset_format.messages}: expected a list of messages, got {messages!r:.80}.")

    turns = [_read_message(message, number, dataset_format) for number, message in enumerate(messages)]
    has_system = bool(turns) and turns[0].message.role == "system"
    if not has_system and dataset_format.system and sample.get(dataset_format.system):
        turns = [SampleMessage(Message("system", sample[dataset_format.system]), dataset_format.system), *turns]
        _add_sample_types(turns[:1], sample, dataset_format)
    if dataset_format.ranking:
        for column in (dataset_format.chosen, dataset_format.rejected):
            if isinstance(sample.get(column), Mapping):
                turns.append(_read_message(sample[column], column, dataset_format))
    return turns


def _read_message(message: Any, number: int | str | None, dataset_format: DatasetFormat) -> SampleMessage:
    where = f"turn {number}"
    role_tag, content_tag = dataset_format.role_tag, dataset_format.content_tag
    if not isinstance(message, (dict, Mapping)) or role_tag not in message or content_tag not in message:
        raise _missing(message, where, dataset_format)

    name: str = message[role_tag]
    role = dataset_format.roles.get(name, name)
    tools = None
    try:
        given = message[content_tag]
        text, spans, media = (
            (given, (), ()) if isinstance(given, str) else join_parts(given, dataset_format.semantic_tag or TYPE_KEY)
        )
        if dataset_format.formatting == "openai" and role in ("assistant", "function") and message.get("tool_calls"):
            calls = [call["function"] for call in message["tool_calls"]]
            role, tools = "function", tuple(str(call.get("name")) for call in calls)
            text, spans, media = json.dumps(calls, ensure_ascii=False), (), ()  # what LLaMA-Factory makes of it
        semantic_type = None
        if dataset_format.semantic_tag is not None:
            semantic_type = _read_type(message.get(dataset_format.semantic_tag))
            if message.get(SPANS_KEY) is not None:
                spans = read_spans(message[SPANS_KEY], len(text)) + spans
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{where}: {error}") from None
    place = number if isinstance(number, int) else -1
    return SampleMessage(Message(role, text, semantic_type, spans, tools), where, message, media, place)


def _missing(message: Any, where: str, dataset_format: DatasetFormat) -> ValueError:
    """Return the error of a message without what every message must have."""
    if not isinstance(message, Mapping):
        return ValueError(f"{where}: expected a message, got {message!r:.80}.")
    tags = {"role_tag": dataset_format.role_tag, "content_tag": dataset_format.content_tag}
    name, tag = next((name, tag) for name, tag in tags.items() if tag is None or tag not in message)
    if tag is None:
        return ValueError(f"the data set's tags have no {name}: a `tags` block must name all of them.")
    return ValueError(f"{where}: {tag!r} ({name}) is missing; it has {', '.join(map(repr, message))}.")


def _read_alpaca(sample: Sample, dataset_format: DatasetFormat) -> list[SampleMessage]:
    texts: list[tuple[str, Any]] = []
    if dataset_format.system and sample.get(dataset_format.system):
        texts.append(("system", sample[dataset_format.system]))
    for pair in (sample.get(dataset_format.history) or []) if dataset_format.history else []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{dataset_format.history}: expected pairs of texts, got {pair!r:.80}.")
        texts += [("user", pair[0]), ("assistant", pair[1])]
    query = [
        sample[column] for column in (dataset_format.prompt, dataset_format.query) if column and sample.get(column)
    ]
    if not all(isinstance(text, str) for text in query):
        raise ValueError(f"{dataset_format.prompt}, {dataset_format.query}: expected texts, got {query!r:.80}.")
    texts.append(("user", "\n".join(query)))
    replies = (
        (dataset_format.chosen, dataset_format.rejected) if dataset_format.ranking else (dataset_format.response,)
    )
    texts += [("assistant", sample[column]) for column in replies if column and isinstance(sample.get(column), str)]

    if not all(isinstance(text, str) for _, text in texts):
        raise ValueError(f"expected texts, got {[text for _, text in texts if not isinstance(text, str)][0]!r:.80}.")
    turns = [
        SampleMessage(Message(role, text), f"text {number} ({role})") for number, (role, text) in enumerate(texts)
    ]
    _add_sample_types(turns, sample, dataset_format)
    return turns


def _add_sample_types(turns: list[SampleMessage], sample: Sample, dataset_format: DatasetFormat) -> None:
    """Give the texts that are no messages the types that stand beside them, one entry for each text."""
    given = sample.get(SAMPLE_TYPES_KEY) if dataset_format.semantic_tag is not None else None
    if given is None:
        return
    if not isinstance(given, list) or [entry.get("role") for entry in given] != [turn.message.role for turn in turns]:
        raise ValueError(
            f"{SAMPLE_TYPES_KEY}: expected one entry for each of {', '.join(turn.message.role for turn in turns)}, got "
            f"{given!r:.80}."
        )
    for entry, turn in zip(given, turns):
        turn.message.semantic_type = _read_type(entry.get(TYPE_KEY))
        turn.message.spans = read_spans(entry.get(SPANS_KEY), len(turn.message.text))


_PARSED: dict[str, int] = {}  # names seen so far


def _read_type(value: Any) -> int | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        return int(SemanticType.parse(value))
    known = _PARSED.get(value)
    if known is None:
        known = _PARSED[value] = int(SemanticType.parse(value))
    return known
