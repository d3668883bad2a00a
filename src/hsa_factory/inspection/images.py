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
        self._of_path: dict[str, int | None] = {}
        self._of_uri: dict[str, int] = {}

    def add(self, source: Any) -> int | None:
        """Add a picture and return its number; None if it cannot be shown (a web address, an unreadable file).

        Args:
            source: A path, bytes, a mapping with ``bytes`` or ``path``, or a Pillow image, as LLaMA-Factory takes it.
        """
        if not isinstance(source, str):
            return self._number(_data_uri(source))
        if source not in self._of_path:
            self._of_path[source] = self._number(_data_uri(source))
        return self._of_path[source]

    def _number(self, uri: str | None) -> int | None:
        if uri is None:
            return None
        if uri not in self._of_uri:
            self._of_uri[uri] = len(self.uris)
            self.uris.append(uri)
        return self._of_uri[uri]


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
