"""What the kernels are told, and how it lies in memory. Arrays are told by their addresses."""

import numpy as np

from .instructions import pointer_to


KEYS = 64
"""Keys that are looked at together."""

TILE = np.dtype(
    [
        ("first", np.int64),  # where the first query stands among the tokens of the forward
        ("queries", np.int64),
        ("position", np.int64),  # of the first query
        ("places", np.int64),  # (3, room) int32: by type, the positions of keys, ascending
        ("slots", np.int64),  # (3, room) int64: where each lies in the cache, as the row of its first head
        ("room", np.int64),
        ("numbers", np.int64, 3),  # of keys, by type
        ("types", np.int64),  # uint8, of the request's tokens
        ("turns", np.int64),  # int64, of the request's tokens; 0: the rules have none
        ("part", np.int64),  # of the keys in sight, if they are divided among several tiles; the first joins all
        ("parts", np.int64),
        ("partial", np.int64),  # (heads, rows, PARTIAL + size in whole registers) float32: what a part found
    ]
)
"""Consecutive queries of a request."""

BLOCK = np.dtype(
    [
        ("sources", np.int64, KEYS),  # rows of the cache
        ("places", np.int32, KEYS),
        ("last", np.int32, KEYS),  # the last query that sees each by its window
        ("last_turn", np.int32, KEYS),  # by its turns
        ("kinds", np.int32, KEYS),
        ("decays", np.float32, KEYS),
    ]
)
"""Keys that are looked at together."""
PARTIAL = 2
"""Numbers before what is summed: the highest logit and the total of the weights."""

SIGHT = np.dtype(
    [
        ("windows", np.int64, 3),  # by type: the largest distance at which a key is seen; -1: its turns alone count
        ("turns", np.int64, 3),  # by type: for how many turns after its own it is seen at any distance; -1: none count
        ("sliding", np.int64),  # the largest distance that is left of all this
        ("hides", np.int64),  # bit 3·query type + key type: such a pair never see each other
        ("decays", np.float32, 3),
        ("scale", np.float32),
    ]
)
"""The rules of a layer, as `LayerRules` has them; decays and scale are for logits of base 2."""

CALL = np.dtype(
    [
        ("threads", np.int64),  # that began, and
        ("tasks", np.int64),  # those that were taken: both count from 0
        ("query", np.int64),
        ("query_token", np.int64),  # from a token to the next, in numbers; below: from a head to the next
        ("query_head", np.int64),
        ("key", np.int64),
        ("key_token", np.int64),
        ("key_head", np.int64),
        ("value", np.int64),
        ("value_token", np.int64),
        ("value_head", np.int64),
        ("output", np.int64),
        ("output_token", np.int64),
        ("output_head", np.int64),
        ("cache", np.int64),  # rows of a key and its value
        ("heads", np.int64),  # of keys
        ("group", np.int64),  # query heads of each
        ("block", np.int64),  # tokens of a block of the cache: rows from a head to the next
        ("slots", np.int64),  # int64, of each token
        ("tokens", np.int64),
        ("tiles", np.int64),
        ("number", np.int64),  # of tiles
        ("sight", np.int64),
        ("scratch", np.int64),
        ("scratch_bytes", np.int64),  # of a thread
    ]
)
"""What kernels are told. A task is a tile with a head of keys, for `write` `COPIED` tokens; threads take one after the other."""
COPIED = 128

int64_at, int32_at, uint8_at, uint16_at, float32_at = map(
    pointer_to, (np.int64, np.int32, np.uint8, np.uint16, np.float32)
)
tile_at, block_at, sight_at, call_at = map(pointer_to, (TILE, BLOCK, SIGHT, CALL))
