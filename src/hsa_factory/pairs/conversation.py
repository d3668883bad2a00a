"""A sample of any format as messages in the form of sharegpt, which LLaMA-Factory reads rankings in.

In `openai` data LLaMA-Factory loses the replies of tools at the end of a prompt, and the tool calls of a chosen reply; `alpaca`
has no place for tools and thoughts. So tool calls become text as it would write them, replies of parallel calls one message, and
the texts of alpaca messages.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from ..labeling.formats import SAMPLE_TYPES_KEY, DatasetFormat, SampleMessage
from ..labeling.matching import Message
from ..labeling.parts import SPANS_KEY, TYPE_KEY, write_spans
from ..labeling.trainable import as_texts, check_roles, check_trainable
from ..labeling.trajectories.normalise import normalise
from ..labeling.weights import StepLabels, read_weight
from ..semantics import SemanticType
from ..typed.spans import Span, fill_gaps, shift


REPLY_JOINT = "\n</tool_response>\n<tool_response>\n"  # what LLaMA-Factory puts between the replies of parallel calls
_FUNCTION = "function_call"


class Turn(NamedTuple):
    """A message of the result.

    Attributes:
        message: As it is written.
        read: As rules and weights see it.
        is_call: Whether its text is made of tool calls that stood in a key of their own.
    """

    message: dict[Any, Any]
    read: SampleMessage
    is_call: bool = False


@dataclass(frozen=True)
class Conversation:
    """A sample as messages.

    Attributes:
        turns: Its messages; a system prompt in a column of its own is none of them.
        rest: The other columns.
    """

    turns: Sequence[Turn]
    rest: Mapping[Any, Any]


def written_format(dataset_format: DatasetFormat) -> DatasetFormat:
    """Return the format that messages are written in."""
    if dataset_format.formatting == "alpaca":
        return DatasetFormat(
            formatting="sharegpt", system=dataset_format.system, semantic_tag=dataset_format.semantic_tag
        )
    function_tag = dataset_format.function_tag
    if dataset_format.formatting == "openai" and function_tag is None:
        function_tag = _FUNCTION
    return replace(dataset_format, formatting="sharegpt", function_tag=function_tag)


def read_conversation(
    sample: Any, dataset_format: DatasetFormat, tools: str | None, notes: Counter[str]
) -> Conversation:
    """Read a sample.

    Args:
        sample: Any sample.
        dataset_format: Its format.
        tools: Column of the tools' descriptions; None: there is none.
        notes: What was changed so that LLaMA-Factory reads it whole, counted; added to.

    Raises:
        ValueError: If it does not have the format; the message names the turn and the key.
    """
    sample = normalise(sample, dataset_format, notes=notes)
    sample = as_texts(sample, dataset_format, tools)
    turns = check_trainable(sample, dataset_format, tools or "")
    check_roles(turns, dataset_format)
    if dataset_format.formatting == "alpaca":
        return _read_alpaca(sample, turns, dataset_format)
    rest = {column: value for column, value in sample.items() if column != dataset_format.messages}
    messages = [_as_turn(turn, dataset_format) for turn in turns if turn.source is not None]
    if dataset_format.formatting == "openai":
        messages = _join_replies(messages, dataset_format)
    return Conversation(messages, rest)


def _as_turn(turn: SampleMessage, dataset_format: DatasetFormat) -> Turn:
    message: dict[Any, Any] = dict(turn.source or {})
    if dataset_format.formatting != "openai" or turn.message.tools is None:
        return Turn(message, turn)
    message.pop("tool_calls", None)
    message[dataset_format.role_tag] = written_format(dataset_format).function_tag
    message[dataset_format.content_tag] = turn.message.text
    return Turn(message, turn, is_call=True)


def _join_replies(turns: Sequence[Turn], dataset_format: DatasetFormat) -> list[Turn]:
    """Make one message of the replies of parallel calls."""
    joined: list[Turn] = []
    for is_reply, group in groupby(turns, key=lambda turn: turn.read.message.role == "observation"):
        replies = list(group)
        joined += [_join(replies, dataset_format)] if is_reply and len(replies) > 1 else replies
    return joined


def _join(replies: Sequence[Turn], dataset_format: DatasetFormat) -> Turn:
    """Join texts and types as LLaMA-Factory and the integration do: the type is that of the reply which remembers most."""
    reads = [reply.read.message for reply in replies]
    base = min((read.semantic_type for read in reads if read.semantic_type is not None), default=None)
    spans: list[Span] = []
    media: list[tuple[int, str, Any]] = []
    start = 0
    for reply, read in zip(replies, reads):
        own = read.spans if read.semantic_type in (None, base) else fill_gaps(read.spans, len(read.text), _own(read))
        spans += shift(own, start)
        media += [(place + start, kind, file) for place, kind, file in reply.read.media]
        start += len(read.text) + len(REPLY_JOINT)
    text = REPLY_JOINT.join(read.text for read in reads)
    content: Any = _parts(replies, spans, text, dataset_format) if media else text
    message = {**replies[0].message, dataset_format.content_tag: content, **_common_weight(replies)}
    if base is not None:
        message[dataset_format.semantic_tag] = SemanticType(base).name
    message.pop(SPANS_KEY, None)
    if spans and not media:
        message[SPANS_KEY] = write_spans(tuple(spans))
    joined = replace(reads[0], text=text, semantic_type=base, spans=tuple(spans))
    return Turn(message, replies[0].read._replace(message=joined, media=tuple(media), source=message))


def _own(read: Message) -> int:
    return int(read.semantic_type or 0)


def _parts(
    replies: Sequence[Turn], spans: Sequence[Span], text: str, dataset_format: DatasetFormat
) -> list[dict[str, Any]]:
    """Return a text as parts that keep their files; each has the type that the spans say."""
    named = {}
    start = 0
    for reply in replies:
        for place, kind, file in reply.read.media:
            named[place + start] = (kind, file)
        start += len(reply.read.message.text) + len(REPLY_JOINT)
    type_key = dataset_format.semantic_tag or TYPE_KEY
    cuts = {0, len(text), *named, *(place + len(f"<{kind}>") for place, (kind, _) in named.items())}
    cuts |= {place for span in spans for place in span[:2]}
    parts = []
    for begin, end in pairwise(sorted(cuts)):
        kind, file = named.get(begin, ("text", text[begin:end]))
        types = [SemanticType(span[2]).name for span in spans if span[0] <= begin and end <= span[1]]
        parts.append({"type": kind, kind: file, **({type_key: types[0]} if types else {})})
    return parts


def _common_weight(replies: Sequence[Turn]) -> dict[str, Any]:
    """Return the weight of replies that become one message: 0 if one has it.

    Raises:
        ValueError: If they have other weights that differ.
    """
    weights = {read_weight(reply.read, StepLabels(key=None)) for reply in replies}
    if len(weights) > 1 and 0 not in weights:
        raise ValueError(
            f"{replies[0].read.where}: the replies of parallel calls become one message, but have different weights. Give "
            "them one."
        )
    return {"weight": 0} if 0 in weights else {}


def _read_alpaca(
    sample: Mapping[Any, Any], turns: Sequence[SampleMessage], dataset_format: DatasetFormat
) -> Conversation:
    tag, written = dataset_format.semantic_tag, written_format(dataset_format)
    taken = (dataset_format.prompt, dataset_format.query, dataset_format.response, dataset_format.history)
    rest = {column: value for column, value in sample.items() if column not in (*taken, SAMPLE_TYPES_KEY)}
    made = []
    for turn in turns:
        read = turn.message
        types = {} if tag is None or read.semantic_type is None else {tag: SemanticType(read.semantic_type).name}
        spans = {SPANS_KEY: write_spans(tuple(read.spans))} if read.spans else {}
        if read.role == "system":
            rest |= {SAMPLE_TYPES_KEY: [{"role": "system", **types, **spans}]} if types or spans else {}
            continue
        role = written.user_tag if read.role == "user" else written.assistant_tag
        made.append(Turn({written.role_tag: role, written.content_tag: read.text, **types, **spans}, turn))
    return Conversation(made, rest)
