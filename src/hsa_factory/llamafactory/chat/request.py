"""What a client may send: checked before anything is encoded, in every field, and told by the field's name."""

import base64
import binascii
import io
import math
import os
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from fastapi import HTTPException
from llamafactory.api.protocol import (
    ChatCompletionRequest,
    ChatMessage,
    MultimodalInputItem,
    Role,
    ScoreEvaluationRequest,
)
from PIL import Image
from pydantic import PrivateAttr, model_validator

from ...request_keys import CHAT, Reads, meant_key, unread_key, without_hsa
from ..data.alignment import REPLY_JOINT
from ..data.template import PLACEHOLDERS


MAX_CHARACTERS = "API_MAX_CHARACTERS"
"""Environment variable: how many characters a request may have, media in base64 not counted."""

_CHARACTERS = 2_000_000
_PER_VALUE = 4  # characters that JSON needs around a value: a quote on either side, a comma, a colon
_DEPTH = 100  # of lists and objects within each other; encoders of JSON fail at about a thousand
_CHOICES = 128
_COLDEST = 1e-5
_SURROGATE = re.compile("[\ud800-\udfff]")
_MEDIA_KEYS = ("image_url", "video_url", "audio_url")
_DATA_URI = re.compile(r"data:([^;,]*);base64,", re.IGNORECASE)
_FORMATS = {  # that LLaMA-Factory's server reads
    "image_url": ("image/png", "image/jpg", "image/jpeg", "image/gif", "image/bmp"),
    "video_url": ("video/mp4", "video/mkv", "video/avi", "video/mov"),
    "audio_url": ("audio/mpeg", "audio/mp3", "audio/wav", "audio/ogg"),
}

Path = tuple[str | int, ...]


class TypedInputItem(MultimodalInputItem):
    """A part of a message; its type is only known to be refused."""

    semantic_type: Any = None


class TypedChatMessage(ChatMessage):
    """A message that may have a semantic type; which values are allowed is checked later, to answer with a reason."""

    content: str | list[TypedInputItem] | None = None
    reasoning_content: str | None = None
    semantic_type: Any = None

    def text_beside(self) -> dict[str, str]:
        """Return what stands in a reply beside its calls or its text, which LLaMA-Factory leaves out."""
        if self.role != Role.ASSISTANT:
            return {}
        text = self.content if self.tool_calls else None
        if isinstance(text, list):
            text = "".join(part.text or "" for part in text)
        beside = {"content": text, "reasoning_content": self.reasoning_content}
        return {key: value for key, value in beside.items() if value}


class TypedChatCompletionRequest(ChatCompletionRequest):
    """A request with such messages."""

    messages: list[TypedChatMessage]
    _read: Any = PrivateAttr(None)  # what LLaMA-Factory reads from it, once it has been read
    _unread: str | None = PrivateAttr(None)
    _needless: str | None = PrivateAttr(None)

    @model_validator(mode="wrap")
    @classmethod
    def _check_values(cls, data: Any, handler: Any) -> Any:
        check_values(data)
        body = data
        if isinstance(data, dict) and isinstance(data.get("messages"), list):
            body = {**data, "messages": [_as_system(message) for message in data["messages"]]}
        request = handler(body)
        request._unread, request._needless = unread_key(CHAT, Reads(messages=True), data), without_hsa(data)
        return request

    def check_keys(self, has_hsa: bool) -> None:
        """Refuse keys of HSA that would be ignored.

        Args:
            has_hsa: Whether the model that is served has HSA.

        Raises:
            HTTPException: 400; names the key.
        """
        if reason := self._unread if has_hsa else self._needless:
            raise HTTPException(400, detail=reason)


class CheckedScoreEvaluationRequest(ScoreEvaluationRequest):
    """A request to a reward model."""

    @model_validator(mode="before")
    @classmethod
    def _check_values(cls, data: Any) -> Any:
        check_values(data)
        for key in filter(meant_key, data if isinstance(data, dict) else ()):
            raise HTTPException(
                400, detail=f"{key[:40]}: the texts of a reward model are typed by its rules. Leave it out."
            )
        return data


def read_limit(name: str, default: int) -> int:
    """Read a limit from the environment.

    Raises:
        ValueError: If it is no whole number above 0; names the variable.
    """
    value = os.environ.get(name) or str(default)
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise ValueError(f"{name}={value!r} is not allowed: give a whole number above 0, such as {default}.")
    return int(value)


def max_characters() -> int:
    """Return how many characters a request may have, media in base64 not counted.

    Raises:
        ValueError: As `read_limit`.
    """
    return read_limit(MAX_CHARACTERS, _CHARACTERS)


def check_values(data: Any) -> None:
    """Check everything that a request holds, before it is looked at more closely.

    Raises:
        HTTPException: 413, if it has more characters than are allowed; 400 for what cannot be
            encoded: half a character (a lone surrogate), a number that is not finite, or too deep nesting.
    """
    characters, limit = 0, max_characters()
    for path, value in _walk(data):
        texts = [value] if isinstance(value, str) else list(value) if isinstance(value, dict) else []
        characters += _PER_VALUE * len(value) if isinstance(value, (dict, list)) else 0
        characters += sum(len(text) for text in texts if not _is_media(path, text))
        if characters > limit:
            raise HTTPException(
                413,
                detail=f"The request has more than {limit:,} characters. Send less, or start the server with a larger "
                f"{MAX_CHARACTERS}.",
            )
        if len(path) > _DEPTH:
            raise HTTPException(400, detail=f"{_name(path[:3])}: nested more than {_DEPTH} levels deep.")
        if isinstance(value, float) and not math.isfinite(value):
            raise HTTPException(400, detail=f"{_name(path)}: {value} is not a finite number.")
        for text in texts:
            if not text.isascii() and (half := _SURROGATE.search(text)):
                raise HTTPException(
                    400,
                    detail=f"{_name(path)}: holds half a character (the lone surrogate \\u{ord(half[0]):04x}), which is no "
                    "valid Unicode. Send whole characters.",
                )


def check_request(request: ChatCompletionRequest) -> None:
    """Check what the fields' types leave open: numbers out of range, tools without a description, parts of messages.

    Raises:
        HTTPException: 400; names the field.
    """
    if not 1 <= request.n <= _CHOICES:
        raise HTTPException(400, detail=f"n: {request.n} is not allowed: ask for 1 to {_CHOICES} answers.")
    if request.temperature is not None and 0 < request.temperature < _COLDEST:
        raise HTTPException(
            400,
            detail=f"temperature: {request.temperature} is too small to divide by: use 0, or {_COLDEST:g} and more.",
        )
    for number, tool in enumerate(request.tools or []):
        if tool.function is None:
            raise HTTPException(400, detail=f"tools[{number}].function: is missing.")
    check_parts(request.messages)


def check_parts(messages: Sequence[ChatMessage]) -> None:
    """Check the parts that messages consist of.

    Raises:
        HTTPException: 400, if a part lacks what its type names, or its base64 or format cannot be read; names the part.
    """
    for number, message in enumerate(messages):
        for place, part in enumerate(message.content if isinstance(message.content, list) else []):
            where = f"messages[{number}].content[{place}]"
            value = getattr(part, part.type)
            if value is None:
                raise HTTPException(400, detail=f"{where}: a part of type {part.type!r} needs {part.type!r}.")
            if part.type != "text":
                _check_url(value.url, part.type, f"{where}.{part.type}.url")


def join_tool_messages(messages: Sequence[TypedChatMessage]) -> list[tuple[TypedChatMessage, list[int]]]:
    """Join the replies to parallel calls, as LLaMA-Factory does in training; its server takes one message a turn.

    Returns:
        The messages, each with the characters that the model reads of each message that it was made of.

    Raises:
        HTTPException: 400, if one of several replies has no text.
    """
    joined = []
    numbered = enumerate(messages)
    for role, group in groupby(numbered, lambda item: item[1].role):
        members = list(group)
        if role != Role.TOOL or len(members) == 1:
            joined += [(message, [_length(message)]) for _, message in members]
            continue
        for number, message in members:
            if message.content is None:
                raise HTTPException(400, detail=f"messages[{number}].content: content must be a text.")
        contents = [message.content for _, message in members]
        joined.append(
            (
                members[0][1].model_copy(update={"content": _join_contents(contents)}),
                [_length(message) for _, message in members],
            )
        )
    return joined


def check_turns(joined: Sequence[tuple[TypedChatMessage, list[int]]]) -> None:
    """Check that the two sides take turns.

    Args:
        joined: As `join_tool_messages` returns them.

    Raises:
        HTTPException: 400; names the message.
    """
    number, is_reply = 0, True
    for place, (message, lengths) in enumerate(joined):
        if place or message.role != Role.SYSTEM:
            is_reply = not is_reply
            sides = (Role.ASSISTANT, Role.FUNCTION) if is_reply else (Role.USER, Role.TOOL)
            if message.role not in sides:
                raise HTTPException(
                    400,
                    detail=f"messages[{number}].role: {message.role.value!r} cannot stand here, expected {sides[0].value!r} or "
                    f"{sides[1].value!r}: after a system message, messages of the user or of tools and replies take turns. "
                    "Join what stands in a row.",
                )
        number += len(lengths)
    if is_reply:
        last = "the last one is a reply" if number > 1 else "there is no message to answer"
        raise HTTPException(400, detail=f"messages: {last}; end with a message of the user or of a tool.")


def _as_system(message: Any) -> Any:
    """Return a developer's message as the system's, which it is to a template."""
    is_developer = isinstance(message, dict) and message.get("role") == "developer"
    return {**message, "role": "system"} if is_developer else message


def _join_contents(contents: list[Any]) -> str | list[TypedInputItem]:
    if all(isinstance(content, str) for content in contents):
        return REPLY_JOINT.join(contents)
    parts: list[TypedInputItem] = []
    for number, content in enumerate(contents):
        parts += [TypedInputItem(type="text", text=REPLY_JOINT)] if number else []
        parts += [TypedInputItem(type="text", text=content)] if isinstance(content, str) else content
    return parts


def _length(message: TypedChatMessage) -> int:
    if not isinstance(message.content, list):
        return len(message.content or "")
    placeholders: dict[str, str] = dict(zip(_MEDIA_KEYS, PLACEHOLDERS))
    texts = [placeholders.get(part.type, part.text or "") for part in message.content]
    return sum(map(len, texts))


def _check_url(url: str, kind: str, where: str) -> None:
    if not url[:5].lower().startswith("data:"):
        return
    match = _DATA_URI.match(url)
    if match is None or match[1] not in _FORMATS[kind]:
        raise HTTPException(
            400,
            detail=f"{where}: begins with {url[:40]!r}; a data URI must begin with data:FORMAT;base64, and FORMAT be one "
            f"of {', '.join(_FORMATS[kind])}.",
        )
    try:
        decoded = base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise HTTPException(400, detail=f"{where}: is not valid base64 ({error}).") from None
    if kind == "image_url":
        try:
            Image.open(io.BytesIO(decoded)).close()
        except Exception as error:  # PIL's readers raise many kinds
            raise HTTPException(
                400, detail=f"{where}: is no picture that can be read ({type(error).__name__})."
            ) from None
    elif not decoded:
        raise HTTPException(400, detail=f"{where}: holds no data.")


def _walk(data: Any) -> Iterator[tuple[Path, Any]]:
    """Yield every value of a JSON document with its path; without recursion, however deep it is."""
    waiting: list[tuple[Path, Any]] = [((), data)]
    while waiting:
        path, value = waiting.pop()
        yield path, value
        if isinstance(value, dict):
            waiting += [((*path, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, number), item) for number, item in enumerate(value)]


def _is_media(path: Path, text: str) -> bool:
    """Whether a text is the base64 of a part of a message; `check_parts` looks at it."""
    if len(path) != 6 or path[0] != "messages" or path[2] != "content" or path[5] != "url":
        return False
    return path[4] in _MEDIA_KEYS and text.startswith("data:")


def _name(path: Path) -> str:
    """Write a path as clients know it, such as ``messages[2].content``."""
    name = ""
    for key in path:
        name += f"[{key}]" if isinstance(key, int) else f".{ascii(key)[1:-1][:40]}"
    return name.removeprefix(".") or "The request"
