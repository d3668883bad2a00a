"""The types that a client sends with chat messages and their parts. What vLLM makes of the messages has none any more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...labeling.parts import SPANS_KEY, TYPE_KEY, write_spans
from ...semantics import SemanticType
from ..types import InvalidTypes


_LONGEST = 40  # characters of a name that is said again
_JOINT = "\n"  # vLLM writes it between the texts of parts where the chat template takes texts only


@dataclass(frozen=True)
class GivenTypes:
    """What a client says of one message.

    Attributes:
        message: Its type; None: not said.
        parts: For each part of its content, its type or None. Empty: the content is one text, or no part has a type.
        texts: For each part, its text; None: it is none of text.
    """

    message: SemanticType | None = None
    parts: tuple[SemanticType | None, ...] = ()
    texts: tuple[str | None, ...] = ()


_NOTHING = GivenTypes()


def read_given(request: Any) -> list[GivenTypes]:
    """Read the types in the body of a chat request; keys that nobody reads are for `type_keys`, what else is in it for vLLM.

    Args:
        request: The body, as JSON. One without a list of messages has no types.

    Returns:
        One for each message.

    Raises:
        InvalidTypes: If a type is none; it names the message and part.
    """
    if not isinstance(request, Mapping):
        return []
    messages = request.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        return []
    return [_read_message(message, number) for number, message in enumerate(messages)]


def _read_message(message: Any, number: int) -> GivenTypes:
    if not isinstance(message, Mapping):
        return _NOTHING
    kind = _read_type(message, number)
    content = message.get("content")
    if not isinstance(content, list):
        return _NOTHING if kind is None else GivenTypes(kind)
    parts = tuple(
        _read_type(part, number, place) if isinstance(part, Mapping) else None for place, part in enumerate(content)
    )
    if any(part is not None for part in parts):
        return GivenTypes(kind, parts, tuple(map(_text_of, content)))
    return GivenTypes(kind)


def _read_type(holder: Mapping[str, Any], number: int, place: int | None = None) -> SemanticType | None:
    value = holder.get(TYPE_KEY)
    try:
        if isinstance(value, (list, dict)):
            raise ValueError(f"must be one name or number, got a {type(value).__name__}.")
        if isinstance(value, str) and len(value) > _LONGEST:
            raise ValueError(f"must be one name or number, got a text of {len(value)} characters.")
        return None if value is None else SemanticType.parse(value)
    except ValueError as error:
        where = f"messages[{number}]" if place is None else f"messages[{number}].content[{place}]"
        raise InvalidTypes(f"{where}.{TYPE_KEY}: {error}") from None


def _text_of(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) else None
    return text if isinstance(text, str) else None


def put_types(conversation: Sequence[Mapping[str, Any]], given: Sequence[GivenTypes]) -> list[dict[str, Any]]:
    """Put a client's types to the messages as vLLM gives them to the chat template.

    Args:
        conversation: The messages, with content as text or as a list of parts.
        given: What the client said of each.

    Raises:
        InvalidTypes: If a type's part cannot be found again.
    """
    if not given:
        return [dict(message) for message in conversation]
    if len(given) != len(conversation):
        raise InvalidTypes(
            f"messages: {len(given)} were sent, and the chat template gets {len(conversation)}, so that nobody can tell which "
            f"{TYPE_KEY} belongs to which."
        )
    return [_with_types(dict(message), types, n) for n, (message, types) in enumerate(zip(conversation, given))]


def _with_types(message: dict[str, Any], given: GivenTypes, number: int) -> dict[str, Any]:
    if given.message is not None:
        message[TYPE_KEY] = given.message.name
    if not given.parts:
        return message
    content = message.get("content")
    if isinstance(content, list) and len(content) == len(given.parts):
        message["content"] = [_typed_part(part, kind) for part, kind in zip(content, given.parts)]
        return message
    texts = [text for text in given.texts if text is not None]
    if len(texts) < len(given.texts) or content != _JOINT.join(texts):
        raise InvalidTypes(
            f"messages[{number}].content: a part has a {TYPE_KEY}, and the parts cannot be followed into the prompt. Send texts "
            "only, or give the type to the message."
        )
    spans, start = [], 0
    for text, kind in zip(texts, given.parts):
        if kind is not None and text:
            spans.append((start, start + len(text), int(kind)))
        start += len(text) + len(_JOINT)
    message[SPANS_KEY] = write_spans(tuple(spans))
    return message


def _typed_part(part: Any, kind: SemanticType | None) -> Any:
    if kind is None:
        return part
    return {**({"type": "text", "text": part} if isinstance(part, str) else part), TYPE_KEY: kind.name}
