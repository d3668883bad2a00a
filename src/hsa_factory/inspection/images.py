"""Images for a page that needs no network: small data URIs, each picture once."""

import base64
import io
from typing import Any

from PIL import Image


_LARGEST = 480  # pixels of the longer side
_QUALITY = 80


class ImageStore:
    """The pictures of a page.

    Attributes:
        uris: A data URI for each picture that was added.
    """

    def __init__(self) -> None:
        self.uris: list[str] = []
        self._known: dict[Any, int | None] = {}

    def add(self, source: Any) -> int | None:
        """Add a picture and return its number; None if it cannot be shown (a web address, an unreadable file).

        Args:
            source: A path, bytes, a mapping with ``bytes`` or ``path``, or a Pillow image, as LLaMA-Factory takes it.
        """
        key = source if isinstance(source, str) else id(source)
        if key not in self._known:
            uri = _data_uri(source)
            self._known[key] = None if uri is None else len(self.uris)
            if uri is not None:
                self.uris.append(uri)
        return self._known[key]


def _data_uri(source: Any) -> str | None:
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    try:
        if isinstance(source, bytes):
            source = io.BytesIO(source)
        image = source if isinstance(source, Image.Image) else Image.open(source)
        image = image.copy()
        image.thumbnail((_LARGEST, _LARGEST))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    except (OSError, ValueError, AttributeError, Image.DecompressionBombError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
