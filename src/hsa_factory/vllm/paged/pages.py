"""Which pages of the cache the queries of a forward read: only those with a key that one of them may see."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..tokens import TokenTypes


QUERIES = 16
"""Queries of a block, all of one request: the fewest that a GPU multiplies at once."""


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
    """The queries of a forward in blocks of `QUERIES`, each block of one piece.

    Legend: N blocks, W pages of the block with most.

    Attributes:
        pieces: (N,) int64, the piece of each block.
        queries: (N·QUERIES,) int64, which token of the forward each is; -1 beyond the end of a piece.
        positions: (N·QUERIES,) int32, of each in its request; -1 beyond the end of a piece.
        number: (N,) int32, of pages.
        pages: (N, W) int64, as numbers within the request; beyond their number the first one again.
    """

    pieces: NDArray[np.int64]
    queries: NDArray[np.int64]
    positions: NDArray[np.int32]
    number: NDArray[np.int32]
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


def blocks_of(pieces: Sequence[Piece], page_size: int) -> Blocks:
    """Sort queries into blocks, and find the pages of each.

    Args:
        pieces: Of the forward; at least one.
        page_size: Tokens of a page.
    """
    numbers, queries, positions, pages = [], [], [], []
    for number, piece in enumerate(pieces):
        starts = np.arange(piece.start, piece.stop, QUERIES)
        place = starts[:, None] + np.arange(QUERIES)
        is_real = place < piece.stop
        numbers += [number] * len(starts)
        queries.append(np.where(is_real, place - piece.start + piece.place, -1).ravel())
        positions.append(np.where(is_real, place, -1).ravel())
        pages += _pages(piece, starts, page_size)
    width = _width(max(map(len, pages)))
    table = np.stack([np.pad(found, (0, width - len(found)), constant_values=found[0]) for found in pages])
    return Blocks(
        np.array(numbers, np.int64),
        np.concatenate(queries).astype(np.int64),
        np.concatenate(positions).astype(np.int32),
        np.array(list(map(len, pages)), np.int32),
        table.astype(np.int64),
    )


def _pages(piece: Piece, starts: NDArray[np.int64], page_size: int) -> list[NDArray[np.int64]]:
    """Return, for each block of queries, the pages with a key that may be seen from it."""
    number = -(-piece.stop // page_size)
    begins = np.arange(number) * page_size
    stops = np.minimum(starts + QUERIES, piece.stop)
    is_read = begins < stops[:, None]
    if piece.tokens is not None:
        last = np.full(number * page_size, -1, np.int64)
        last[: piece.stop] = piece.tokens.last[: piece.stop]
        is_read &= last.reshape(number, page_size).max(axis=1) >= starts[:, None]
    return [np.flatnonzero(row) for row in is_read]


def _width(longest: int) -> int:
    """Return how many pages to make room for: few different numbers, and one more, which the kernel looks ahead to."""
    return 2 ** int(np.ceil(np.log2(longest + 1)))
