"""Media as people give them (paths, `file://`, data URIs) as files on this machine."""

import base64
import binascii
import hashlib
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

import datasets
from PIL import Image, UnidentifiedImageError

from ...whole_files import write_whole


_SUBTYPE = re.compile(r"[a-z]+/(?:x-)?([a-z0-9]+)")
_LONGEST_PATH = 4096  # characters
_SHOWN = 60  # characters of a file's name in a message: a data URI has millions


class MediaError(ValueError):
    """A medium that no file on this machine can be had for; the message says why, and what to do."""


def local_file(medium: Any, kind: str, is_path: bool = True, cache_dir: str | None = None) -> Any:
    """Return the path of a medium given as a text; everything else (a picture, bytes) as it is.

    Args:
        medium: A path, ``file:///…``, or ``data:image/png;base64,…``, whose bytes are written to a file beside the cache
            of `datasets`, once. A list of frames: each of them.
        kind: ``image``, ``video`` or ``audio``.
        is_path: Whether it must come down to a path: a mapping then has it under ``url`` or ``path``.
        cache_dir: None: that of `datasets`.

    Raises:
        MediaError: If it lies on another machine (``http://``) and LLaMA-Factory does not fetch it, or a data URI is
            broken.
    """
    if isinstance(medium, list):
        return [local_file(frame, "image", is_path, cache_dir) for frame in medium]
    if is_path and isinstance(medium, Mapping):
        medium = medium.get("url") or medium.get("path") or medium
    if not isinstance(medium, str):
        return medium

    scheme = medium[:16].partition(":")[0].lower()
    if scheme == "data":
        return _write_data(medium, kind, cache_dir)
    if scheme == "file":
        return _path_of(medium)
    if "://" in medium[:16] and kind != "video":  # PyAV opens those of videos
        raise MediaError(
            f"{kind} {shorten(medium)!r} is not on this machine: training reads files. Download it, and give its path."
        )
    if len(medium) > _LONGEST_PATH:
        raise MediaError(
            f"{kind} {shorten(medium)!r} is too long for a path. If it is base64, write `data:{kind}/…;base64,` before it."
        )
    return medium


def shorten(medium: Any) -> str:
    """Return what a message shows of a medium."""
    text = medium if isinstance(medium, str) else repr(medium)
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"


def _path_of(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise MediaError(
            f"{shorten(url)!r} is on another machine ({parts.netloc}); a file of this one has three slashes: file:///…"
        )
    # a path may hold ? and #, which have a meaning in other URLs
    return url2pathname(url.partition(":")[2].removeprefix(f"//{parts.netloc}"))


def _write_data(uri: str, kind: str, cache_dir: str | None) -> str:
    """Write what a data URI holds, under a name that is its content's."""
    head, comma, data = uri.partition(",")
    if not comma:
        raise MediaError(f"{shorten(uri)!r}: a data URI has a comma before its data.")
    media_type, *options = head[len("data:") :].split(";")
    content = unquote_to_bytes(data)
    if "base64" in (option.strip().lower() for option in options):
        try:
            content = base64.b64decode(b"".join(content.split()), validate=True)
        except binascii.Error as error:
            raise MediaError(f"{shorten(uri)!r}: not valid base64 ({error}). Was it cut off?") from None
    if not content:
        raise MediaError(f"{shorten(uri)!r}: the data URI is empty.")
    if kind == "image":
        _check_picture(content, uri)

    subtype = _SUBTYPE.match(media_type.strip().lower())
    suffix = f".{subtype.group(1)}" if subtype else ""
    directory = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "hsa_factory" / "media"
    path = directory / f"{hashlib.sha256(content).hexdigest()[:40]}{suffix}"
    if not path.is_file() or path.stat().st_size != len(content):
        write_whole(path, content)
    return os.fspath(path)


def _check_picture(content: bytes, uri: str) -> None:
    try:
        with Image.open(io.BytesIO(content)):
            pass
    except UnidentifiedImageError:
        raise MediaError(f"{shorten(uri)!r}: what it holds is no picture that Pillow can read.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError(f"{shorten(uri)!r}: the picture in it is broken ({error}). Was it cut off?") from None
