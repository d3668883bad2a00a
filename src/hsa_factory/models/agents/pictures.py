"""The pictures of chat messages, fetched once: a file may be written anew meanwhile, and an address costs time each turn."""

from collections.abc import Mapping, Sequence
from typing import Any


_PLACES = ("image", "url", "path", "base64")
_KINDS = ("image", "image_url")
_SHOWN = 400  # characters of a picture's name in an error


def fetch_pictures(messages: Sequence[Mapping[str, Any]], first: int = 0) -> list[dict[str, Any]]:
    """Return messages whose pictures are there, not only named by a path, an address or base64; the others as they are.

    Args:
        messages: As `apply_chat_template` takes them.
        first: Number of the first, for messages of errors.

    Raises:
        ValueError: If a picture cannot be read; names the message and the picture.
    """
    fetched = []
    for number, message in enumerate(messages, first):
        content = message.get("content")
        parts = [_fetch(part, number) for part in content] if isinstance(content, (list, tuple)) else content
        fetched.append({**message, "content": parts} if "content" in message else dict(message))
    return fetched


def _fetch(part: Any, number: int) -> Any:
    from transformers.image_utils import load_image

    if not isinstance(part, Mapping) or part.get("type") not in _KINDS:
        return part
    given = part.get("image_url", next((part[name] for name in _PLACES if name in part), None))
    source = given.get("url") if isinstance(given, Mapping) else given
    if not isinstance(source, str):
        return part
    try:
        picture = load_image(source)
    except Exception as error:  # of a file, of a network's client, or of what is no picture
        raise ValueError(
            f"turn {number}: the picture {_shortened(source)!r} cannot be read ({type(error).__name__}: "
            f"{_shortened(str(error))}). Give a file, an address, base64, or a PIL image."
        ) from error
    rest = {name: value for name, value in part.items() if name not in (*_PLACES, "image_url")}
    return {**rest, "type": "image", "image": picture}


def _shortened(text: str) -> str:
    """Leave out the middle of base64 and the like; the end of a path is what tells it from others."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}…{text[-_SHOWN // 2 :]}"
