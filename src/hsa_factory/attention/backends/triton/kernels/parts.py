"""What the kernels share. A *row* is a query of one head: those of a group of heads stand side by side, query by query."""

import triton
import triton.language as tl

from .layout import LANES


@triton.jit
def nth_full(n, end0, end1, offset0, offset1, offset2):
    """Return the n-th block of keys that all the queries see."""
    return n + tl.where(n < end0, offset0, tl.where(n < end1, offset1, offset2))


@triton.jit
def nth_partial(n, table, left0, left1, left2, right0, right1):
    """Return the n-th block of keys of which not all is seen by all: those before each run's full ones, then those behind."""
    left = tl.where(n < left0, 0, tl.where(n < left1, 1, 2))
    right = tl.where(n < right0, 0, tl.where(n < right1, 1, 2))
    at = tl.where(n < left2, 3 * LANES + left, 5 * LANES + right)
    return n + tl.load(table + at)


@triton.jit
def load_keys(keys, block, is_there, none, KEYS: tl.constexpr):
    """Return which keys a block holds. It is asked a step ahead, so that the keys themselves can be loaded further ahead."""
    lane = tl.arange(0, KEYS)
    return tl.load(keys + block * KEYS + lane, mask=(lane < KEYS) & is_there, other=none)


@triton.jit
def exponents(products, scale, query_place, key_place, slope, BIASED: tl.constexpr):
    """Return logits for base 2: products of queries and keys, scaled, less what distance takes off."""
    logits = products * scale
    if BIASED:
        logits -= slope * (query_place - key_place)
    return logits


@triton.jit
def is_visible(query_place, key_place, last_place, query_type, hidden_types, HIDING: tl.constexpr):
    """Whether a query sees a key."""
    visible = (query_place >= key_place) & (query_place <= last_place)
    if HIDING:
        visible = visible & (((query_type & hidden_types) == 0) | (query_place == key_place))
    return visible


@triton.jit
def load_rows(pointers, column, mask, SIZE: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """Load (rows, BLOCK) of which SIZE numbers are there; rows that are masked are zeros."""
    at = pointers[:, None] + column[None, :]
    if SIZE == BLOCK:
        if MASKED:
            return tl.load(at, mask=mask[:, None], other=0.0)
        return tl.load(at)
    if MASKED:
        return tl.load(at, mask=mask[:, None] & (column < SIZE)[None, :], other=0.0)
    return tl.load(at, mask=(column < SIZE)[None, :], other=0.0)


@triton.jit
def store_rows(pointers, column, numbers, mask, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Store what `load_rows` loads."""
    at = pointers[:, None] + column[None, :]
    if SIZE == BLOCK:
        tl.store(at, numbers, mask=mask[:, None])
    else:
        tl.store(at, numbers, mask=mask[:, None] & (column < SIZE)[None, :])
