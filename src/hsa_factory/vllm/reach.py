"""Until when the keys of a request are seen, for a sequence that goes on: what `attention.last_seen` says of whole ones."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..attention.layer_rules import UNLIMITED, LayerRules


def last_visible(
    types: NDArray[np.uint8],
    turns: NDArray[np.int64] | None,
    rules: Sequence[LayerRules],
    start: int = 0,
    stop: int | None = None,
) -> NDArray[np.int64]:
    """Find, for some of a request's tokens, the last position that may see each in any layer.

    What is yet to come has the turn of the last token: a request ends with its reply.

    Args:
        types: (L,), the types of all tokens so far.
        turns: (L,), their turn numbers, never falling. None: the rules have no turns.
        rules: What holds in the layers. What `hide` takes away is left out.
        start: First of the tokens in question.
        stop: After the last; None: L.

    Returns:
        (stop − start,) positions; `UNLIMITED` and more: for ever.
    """
    stop = len(types) if stop is None else stop
    kinds, places = types[start:stop].astype(np.int64), np.arange(start, stop)
    last = places.copy()
    for layer in rules:
        seen = places + np.array(layer.window_reach, np.int64)[kinds]
        if layer.has_turns and turns is not None:
            reach = np.array(layer.turn_reach, np.int64)[kinds]
            ends = np.searchsorted(turns, turns[start:stop] + reach, side="right") - 1
            in_turns = np.where(ends == len(turns) - 1, UNLIMITED, ends)
            seen = np.where(reach < 0, seen, np.maximum(seen, in_turns))
            seen = np.minimum(seen, places + layer.sliding_reach)
        last = np.maximum(last, seen)
    return last


def reach_of_new(rules: Sequence[LayerRules]) -> tuple[int, ...]:
    """Return, by type, for how many tokens a token that is generated now will be seen in any layer: `last_visible` of it.

    Args:
        rules: What holds in the layers.
    """
    reaches = []
    for kind in range(3):
        seen = [
            min(UNLIMITED, layer.sliding_reach) if layer.turn_reach[kind] >= 0 else max(layer.window_reach[kind], 0)
            for layer in rules
        ]
        limits = [layer.sliding_reach if layer.has_turns else UNLIMITED for layer in rules]
        reaches.append(max((min(pair) for pair in zip(seen, limits)), default=0))
    return tuple(reaches)


def last_of_blocks(last: NDArray[np.int64], block_size: int) -> NDArray[np.int64]:
    """Return, for each full block of tokens, the last position that may see a key of it."""
    blocks = len(last) // block_size
    return last[: blocks * block_size].reshape(blocks, block_size).max(axis=1, initial=-1)


def longest_hit(is_cached: NDArray[np.bool_], last: NDArray[np.int64], block_size: int, limit: int) -> int:
    """Find how many of a prompt's first blocks need not be computed.

    A block that is not cached does no harm where no later token can see it. That the blocks after it are cached says that
    the whole prefix, types included, was the same: each one's hash covers all before it.

    Args:
        is_cached: (N,), of each full block.
        last: (N,), the last position that may see a key of it.
        block_size: Tokens of a block.
        limit: The most blocks.
    """
    limit = min(limit, len(is_cached))
    missing = np.flatnonzero(~is_cached[:limit])
    forbidden = np.zeros(limit + 2, np.int64)  # hits of that many blocks, as differences
    until = np.minimum(last[missing] // block_size, limit)  # a hit of n blocks goes on at position n·block_size
    is_needed = until > missing
    np.add.at(forbidden, missing[is_needed] + 1, 1)
    np.add.at(forbidden, until[is_needed] + 1, -1)
    allowed = np.flatnonzero(np.cumsum(forbidden)[: limit + 1] == 0)
    return int(allowed[-1])


def most_blocks_held(last: NDArray[np.int64], length: int, chunk: int, block_size: int) -> int:
    """Return the most blocks that a request holds at once while its tokens are read, `chunk` at most at a time.

    Args:
        last: (length,), the last position that may see each key.
        length: Tokens to be read.
        chunk: Tokens of a step.
        block_size: Tokens of a block.
    """
    blocks = -(-length // block_size)
    padded = np.full(blocks * block_size, -1, np.int64)
    padded[:length] = last[:length]
    gone = (
        np.minimum(padded.reshape(blocks, block_size).max(axis=1), length) // block_size + 1
    )  # first block start without
    ends = np.arange(1, blocks + 1)  # in blocks, where a step ends that wrote this block
    starts = np.maximum(ends - -(-chunk // block_size) - 1, 0)
    freed = np.bincount(np.maximum(gone, ends), minlength=blocks + 2).cumsum()  # by the time a step starts there
    return int((ends - freed[starts]).max())
