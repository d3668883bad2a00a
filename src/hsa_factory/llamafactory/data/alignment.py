"""What the data and the rules say of a sample's messages, brought to the messages that LLaMA-Factory makes of them."""

from collections.abc import Sequence
from typing import NamedTuple

from ...labeling.formats import DatasetFormat, SampleMessage
from ...labeling.matching import MessageTypes
from ...typed.spans import Span, fill_gaps, shift


REPLY_JOINT = "\n</tool_response>\n<tool_response>\n"  # what LLaMA-Factory puts between the replies of parallel calls


class AlignedMessage(NamedTuple):
    """Types of a converted message.

    Attributes:
        semantic_type: The message's; None: it has none.
        spans: Types of parts of its text; none if there is one type only.
        is_given: Whether the data gave a type.
        weight: 0 keeps the message out of the loss; None: it is trained as its role is.
        number: Its place among the messages of the data; -1: it has none.
    """

    semantic_type: int | None
    spans: tuple[Span, ...]
    is_given: bool = False
    weight: float | None = None
    number: int = -1


UNTYPED_MESSAGE = AlignedMessage(None, ())
Facts = tuple[SampleMessage, MessageTypes, float | None]  # a message, its types, its weight


def align(facts: Sequence[Facts], dataset_format: DatasetFormat, default: int) -> list[AlignedMessage]:
    """Bring types to the messages that LLaMA-Factory makes: it joins the replies of parallel calls in openai's format."""
    aligned, replies = [], []
    for fact in facts:
        if dataset_format.formatting == "openai" and fact[0].message.role == "observation":
            replies.append(fact)
            continue
        if replies:
            aligned.append(_join(replies, default))
            replies = []
        aligned.append(_join([fact], default))
    return aligned


def with_empty_reply(aligned: Sequence[AlignedMessage], is_desired: bool) -> list[AlignedMessage]:
    """Add the empty reply by which LLaMA-Factory tells desired from undesired: it stands where the other would.

    Args:
        aligned: Typings of a labelled sample, its reply at the end.
        is_desired: Its label.
    """
    *prompt, reply = aligned
    return [*prompt, reply, UNTYPED_MESSAGE] if is_desired else [*prompt, UNTYPED_MESSAGE, reply]


def _join(facts: Sequence[Facts], default: int) -> AlignedMessage:
    """Join the types of turns that become one message; what is between them has the type that remembers most."""
    if len(facts) == 1 and not facts[0][1].spans:  # by far the most frequent case
        ((turn, typing, weight),) = facts
        given = turn.message.semantic_type is not None or bool(turn.message.spans)
        return AlignedMessage(typing.semantic_type, (), given, weight, turn.number)
    is_given = any(turn.message.semantic_type is not None or turn.message.spans for turn, _, _ in facts)
    types = join_types([len(turn.message.text) for turn, _, _ in facts], [typing for _, typing, _ in facts], default)
    return AlignedMessage(*types, is_given, _common_weight(facts), facts[0][0].number)


def join_types(lengths: Sequence[int], typings: Sequence[MessageTypes], default: int) -> MessageTypes:
    """Return the types of replies that become one text, with `REPLY_JOINT` between them.

    The message's type is that of the replies which remembers most; it is the type of all, unless parts have their own.

    Args:
        lengths: Characters of each reply.
        typings: What the data and the rules say of each.
        default: Type of the message if they say nothing.
    """
    base = min((typing.semantic_type for typing in typings if typing.semantic_type is not None), default=None)
    if not any(typing.spans for typing in typings):
        return MessageTypes(base)
    rest = default if base is None else base
    spans: list[Span] = []
    start = 0
    for length, typing in zip(lengths, typings):
        own = rest if typing.semantic_type is None else typing.semantic_type
        spans += shift(fill_gaps(typing.spans, length, own), start)
        start += length + len(REPLY_JOINT)
    return MessageTypes(base, tuple(spans))


def _common_weight(facts: Sequence[Facts]) -> float | None:
    """Return the weight of replies that become one message: 0 if one has it.

    Raises:
        ValueError: If they have other weights that differ.
    """
    weights = {weight for *_, weight in facts}
    if len(weights) > 1 and 0 not in weights:
        named = ", ".join(f"{turn.where}: {'none' if weight is None else weight}" for turn, _, weight in facts)
        raise ValueError(
            f"the replies of parallel calls become one message, but have different weights ({named}). Give them one."
        )
    return 0 if 0 in weights else weights.pop()
