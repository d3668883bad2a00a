"""Which pages of the cache the queries of a forward read: only those with a key that one of them may see."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..tokens import TokenTypes


@dataclass(frozen=True)
class Piece:
    """Consecutive queries of a request that see the same types.

    Attributes:
        row: The request's place in the batch.
        place: Where the first query stands among the tokens of the forward.
        start: Its position.
        stop: Position after the last query.
        tokens: The request's; None: a dry run.
    """

    row: int
    place: int
    start: int
    stop: int
    tokens: TokenTypes | None


@dataclass(frozen=True)
class Blocks:
    """Queries of a forward in blocks, each block of one piece.

    Legend: N blocks, P pages of all of them.

    Attributes:
        pieces: (N,) int64, the piece of each block.
        places: (N,) int64, where its first query stands among the tokens of the forward.
        queries: (N,) int64, how many it has.
        positions: (N,) int64, of the first in its request.
        number: (N,) int64, of pages.
        pages: (P,) int64, those of each block one after the other, as numbers within the request.
    """

    pieces: NDArray[np.int64]
    places: NDArray[np.int64]
    queries: NDArray[np.int64]
    positions: NDArray[np.int64]
    number: NDArray[np.int64]
    pages: NDArray[np.int64]


def pieces_of(row: int, place: int, number: int, length: int, tokens: TokenTypes | None) -> list[Piece]:
    """Cut the queries of a request where its types change.

    Args:
        row: Its place in the batch.
        place: Where its first query stands among the tokens of the forward.
        number: How many it has.
        length: Of its tokens up to the last query.
        tokens: What is known of them. None: a dry run.
    """
    first = length - number
    if tokens is None:
        return [Piece(row, place, first, length, None)]
    tokens.read(length)
    return [Piece(row, place + start - first, start, stop, tokens) for start, stop in tokens.pieces(first, length)]


def blocks_of(pieces: Sequence[Piece], page_size: int, size: int) -> Blocks:
    """Sort queries into blocks, and find the pages of each.

    Args:
        pieces: Of the forward; at least one.
        page_size: Tokens of a page.
        size: Queries of a block.
    """
    starts = [np.arange(piece.start, piece.stop, size) for piece in pieces]
    owner = np.repeat(np.arange(len(pieces)), list(map(len, starts)))
    first, place, stop = np.array([(piece.start, piece.place, piece.stop) for piece in pieces]).T
    positions = np.concatenate(starts)
    found = [pages for piece, begins in zip(pieces, starts) for pages in _pages(piece, begins, page_size, size)]
    return Blocks(
        owner,
        place[owner] + positions - first[owner],
        np.minimum(stop[owner] - positions, size),
        positions,
        np.array(list(map(len, found))),
        np.concatenate(found),
    )


def _pages(piece: Piece, starts: NDArray[np.int64], page_size: int, size: int) -> list[NDArray[np.int64]]:
    """Return, for each block of queries, the pages with a key that may be seen from it."""
    number = -(-piece.stop // page_size)
    is_read = np.arange(number) * page_size < np.minimum(starts + size, piece.stop)[:, None]
    if piece.tokens is not None:
        last = np.full(number * page_size, -1, np.int64)
        last[: piece.stop] = piece.tokens.last[: piece.stop]
        is_read &= last.reshape(number, page_size).max(axis=1) >= starts[:, None]
    return [np.flatnonzero(row) for row in is_read]
