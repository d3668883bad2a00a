"""Message content given as a list of parts: texts with types of their own, images, videos and audio clips."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from ..semantics import SemanticType
from ..typed.spans import Span
from .rule import MEDIA


TYPE_KEY = "semantic_type"
SPANS_KEY = "semantic_spans"
_PATH_KEYS = ("url", "path")
_KINDS = {
    "image_url": "image",
    "video_url": "video",
    "audio_url": "audio",
    "input_audio": "audio",
    "input_image": "image",
    "input_video": "video",
    "input_text": "text",
    "output_text": "text",
    "summary_text": "text",
    "refusal": "text",
}


class Content(NamedTuple):
    """Content as one text.

    Attributes:
        text: What LLaMA-Factory gets; media stand in it as ``<image>``, ``<video>`` or ``<audio>``.
        spans: Parts that have a type of their own.
        media: (kind, file) of the parts that name a file, by the place of their placeholder in the text.
    """

    text: str
    spans: tuple[Span, ...] = ()
    media: tuple[tuple[int, str, Any], ...] = ()


def join_parts(content: Any, type_key: str = TYPE_KEY) -> Content:
    """Join content to one text, parts without anything between them.

    Args:
        content: A text, or a list of parts. A part is a text, ``{"text": …}`` or ``{"type": "text", "text": …}`` (also
            `input_text`, `output_text`), or a medium: ``{"type": "image"}`` with its file under ``image``, ``image_url``,
            ``url``, ``path`` or ``source``, or without one if it is listed in the sample's column (`video` and `audio`
            likewise). Any may have a type.
        type_key: Key of a part's type.

    Raises:
        ValueError: If a part is none of these, or its type is unknown; the message numbers the part from 0.
    """
    if content is None:
        return Content("")
    if isinstance(content, str):
        return Content(content)
    if not isinstance(content, list):
        raise ValueError(f"content: expected a text or a list of parts, got {_shorten(content)}.")

    pieces, spans, media, position = [], [], [], 0
    for number, part in enumerate(content):
        try:
            text, kind, file = _read_part(part)
            own = part.get(type_key) if isinstance(part, Mapping) else None
            if own not in (None, ""):
                spans.append((position, position + len(text), int(SemanticType.parse(own))))
        except ValueError as error:
            raise ValueError(f"part {number}: {error}") from None
        if file is not None:
            media.append((position, kind, file))
        pieces.append(text)
        position += len(text)
    return Content("".join(pieces), tuple(span for span in spans if span[0] < span[1]), tuple(media))


def _read_part(part: Any) -> tuple[str, str, Any]:
    """Return a part's text, its kind (`text` or a medium's) and its file."""
    if isinstance(part, str):
        return part, "text", None
    if not isinstance(part, Mapping):
        raise ValueError(f"expected a text or a mapping, got {_shorten(part)}.")

    kind = part.get("type")
    if kind is None:
        given = [name for name in ("text", *MEDIA) if part.get(name) is not None]
        kind = given[0] if len(given) == 1 else None
    kind = _KINDS.get(str(kind), kind)
    if kind == "text":
        text = part.get("text") if part.get("text") is not None else part.get("refusal")
        if isinstance(text, str):
            return text, "text", None
    if kind in MEDIA:
        keys = (kind, f"{kind}_url", f"input_{kind}", *_PATH_KEYS)
        values = [part[key] for key in keys if part.get(key) is not None]
        file = values[0] if values else _inline_data(part)
        if isinstance(file, Mapping):  # OpenAI's {"image_url": {"url": …}}
            data = file.get("data")  # {"input_audio": {"data": …, "format": "wav"}}
            data = f"data:{kind}/{file.get('format') or 'octet-stream'};base64,{data}" if data else None
            file = next((file[key] for key in _PATH_KEYS if file.get(key)), data)
        return f"<{kind}>", kind, file
    raise ValueError(f"expected a `text`, or a `type` of {', '.join(MEDIA)}, got {_shorten(part)}.")


def _inline_data(part: Mapping[str, Any]) -> str | None:
    """Return data in a block as an address: Anthropic's ``{"source": {"data": …}}``, Pi's ``{"data": …}``; None: it has none."""
    source = part["source"] if isinstance(part.get("source"), Mapping) else part
    if source.get("url"):
        return str(source["url"])
    kind = source.get("media_type") or source.get("mimeType")
    return f"data:{kind};base64,{source['data']}" if kind and isinstance(source.get("data"), str) else None


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def read_spans(value: Any, length: int) -> tuple[Span, ...]:
    """Read `semantic_spans` of a message: a list of ``{"start": …, "end": …, "semantic_type": …}``.

    Args:
        value: What stands in the data; None: nothing.
        length: Characters of the message's text; `start` (included) and `end` (excluded) count them from 0.

    Raises:
        ValueError: If a span is not valid, does not lie in the text or overlaps the one before it.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError(f"{SPANS_KEY}: expected a list, got {_shorten(value)}.")

    spans: list[Span] = []
    position = 0
    for number, span in enumerate(value):
        where = f"{SPANS_KEY} {number}"
        if not isinstance(span, Mapping):
            raise ValueError(f"{where}: expected start, end and {TYPE_KEY}, got {_shorten(span)}.")
        start, end = span.get("start"), span.get("end")
        if not _is_whole(start) or not _is_whole(end):
            raise ValueError(f"{where}: start = {start!r}, end = {end!r}: expected whole numbers.")
        if not position <= start <= end <= length:
            raise ValueError(
                f"{where}: start = {start}, end = {end}: expected {position} ≤ start ≤ end ≤ {length} (spans are in "
                "order, do not overlap, and lie in the text)."
            )
        try:
            semantic_type = int(SemanticType.parse(span.get(TYPE_KEY)))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if start < end:
            spans.append((start, end, semantic_type))
        position = end
    return tuple(spans)


def write_spans(spans: tuple[Span, ...]) -> list[dict[str, Any]]:
    """Return spans as `read_spans` reads them."""
    return [
        {"start": start, "end": end, TYPE_KEY: SemanticType(semantic_type).name} for start, end, semantic_type in spans
    ]


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
