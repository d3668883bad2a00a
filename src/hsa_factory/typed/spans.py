"""Spans: which part of a text, or of a row of tokens, has which type. The one convention of the package."""

import re
from collections.abc import Iterable, Sequence


Span = tuple[int, int, int]  # start, end (excluded), type; of several: in order, without overlap

_RUN = re.compile(rb"\x00+|\x01+|\x02+|\xff+|(.)\1*", re.DOTALL)  # the usual types first: several times faster


def find_runs(types: bytes | bytearray) -> list[Span]:
    """Return the span of each run of equal types, in order."""
    return [(*run.span(), types[run.start()]) for run in _RUN.finditer(types)]


def fill_gaps(spans: Iterable[Span], length: int, rest: int) -> list[Span]:
    """Return spans that cover a whole length.

    Args:
        spans: In order, without overlap; empty ones are left out.
        length: What is to be covered.
        rest: Type of what they do not cover.

    Raises:
        ValueError: If they overlap, are out of order or reach past the length.
    """
    covered: list[Span] = []
    position = 0
    for start, end, semantic_type in spans:
        if not position <= start <= end <= length:
            raise ValueError(
                f"span {start}-{end} of type {semantic_type} does not fit between {position} and {length}."
            )
        if start > position:
            covered.append((position, start, rest))
        if end > start:
            covered.append((start, end, semantic_type))
        position = end
    if position < length or not covered:
        covered.append((position, length, rest))
    return covered


def shift(spans: Iterable[Span], by: int) -> list[Span]:
    """Return spans that lie further back."""
    return [(start + by, end + by, semantic_type) for start, end, semantic_type in spans]


def encode_spans(spans: Sequence[Span]) -> str:
    """Write spans as a text: the same column type for every data set, whatever is in it."""
    return " ".join(f"{start}:{end}:{semantic_type}" for start, end, semantic_type in spans)


def decode_spans(text: str) -> list[Span]:
    """Read back what `encode_spans` wrote."""
    parts = (part.split(":") for part in text.split())
    return [(int(start), int(end), int(semantic_type)) for start, end, semantic_type in parts]
