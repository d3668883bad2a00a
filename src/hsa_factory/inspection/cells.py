"""Tokens joined to what a reader can point at: whole characters, and runs of placeholders."""

from collections.abc import Callable, Sequence


_LONGEST_CHARACTER = 8  # tokens that one character, or a cluster of them, may be spread over
_REPEATS = 4  # a longer run of one token becomes one cell
_REPLACEMENT = "\ufffd"


def group_tokens(
    token_ids: Sequence[int], tokens: Sequence[str], decode: Callable[[Sequence[int]], str], breaks: Sequence[int] = ()
) -> list[tuple[int, str]]:
    """Join tokens that hold parts of one character, and long runs of one token.

    Args:
        token_ids: Ids.
        tokens: Each as text, with a replacement character where it is no whole character.
        decode: Turns ids into text.
        breaks: Places that a cell may not span: where messages start.

    Returns:
        (number of tokens, text) of each cell. The text of a run is that of one token of it.
    """
    cells, place = [], 0
    stops = iter([*sorted(place for place in set(breaks) if place < len(token_ids)), len(token_ids)])
    stop = next(stops)
    while place < len(token_ids):
        while stop <= place:
            stop = next(stops)
        size = _run_length(token_ids, place, stop)
        text = tokens[place]
        if size <= _REPEATS:
            size = 1
            if _REPLACEMENT in text:
                size, text = _whole_character(token_ids, place, stop, decode, text)
        cells.append((size, text))
        place += size
    return cells


def _run_length(token_ids: Sequence[int], place: int, stop: int) -> int:
    end = place + 1
    while end < stop and token_ids[end] == token_ids[place]:
        end += 1
    return end - place


def _whole_character(
    token_ids: Sequence[int], place: int, stop: int, decode: Callable[[Sequence[int]], str], text: str
) -> tuple[int, str]:
    for size in range(2, min(_LONGEST_CHARACTER, stop - place) + 1):
        joined = decode(token_ids[place : place + size])
        if _REPLACEMENT not in joined:
            return size, joined
    return 1, text
