"""The gradients of keys and values: a program computes a piece of the rows that see a block of keys.

The pieces of one block that are more than one write partial sums, which a small kernel adds up in their order.
"""

import triton
import triton.language as tl

from .layout import NOWHERE
from .parts import exponents, is_visible, load_rows, store_rows


NOT_SPECIALIZED = ["queries", "capacity", "blocks", "items", "spare"]


@triton.jit
def _step(
    start, end, key_sums, value_sums, key, value, key_place, last, slope, hidden, scale, query_ptr, upstream_ptr,
    log_sums, deltas, places, types, query_sh, query_sl, upstream_sh, upstream_sl,
    GROUP: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    ROWS: tl.constexpr, BIASED: tl.constexpr, HIDING: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    row = start + tl.arange(0, ROWS)
    token = row // GROUP
    far, head = token.to(tl.int64), (row % GROUP).to(tl.int64)
    if MASKED:
        inside = row < end
        place = tl.load(places + token, mask=inside, other=NOWHERE)
        log_sum = tl.load(log_sums + row, mask=inside, other=float("inf"))
        delta = tl.load(deltas + row, mask=inside, other=0.0)
    else:
        place = tl.load(places + token)
        log_sum = tl.load(log_sums + row)
        delta = tl.load(deltas + row)
    is_real = place < NOWHERE
    query_rows = query_ptr + head * query_sh + far * query_sl
    query = load_rows(query_rows, tl.arange(0, BLOCK_D), is_real, D, BLOCK_D, MASKED or PADDED)
    logits = tl.dot(key, tl.trans(query), input_precision=PRECISION)
    logits = exponents(logits, scale, place[None, :], key_place[:, None], slope[:, None], BIASED)
    weights = tl.exp2(logits - log_sum[None, :])
    if MASKED:
        query_type = tl.load(types + token, mask=inside, other=0) if HIDING else row
        visible = is_visible(
            place[None, :], key_place[:, None], last[:, None], query_type[None, :], hidden[:, None], HIDING
        )
        weights = tl.where(visible, weights, 0.0)
    upstream_rows = upstream_ptr + head * upstream_sh + far * upstream_sl
    upstream = load_rows(upstream_rows, tl.arange(0, BLOCK_E), is_real, E, BLOCK_E, MASKED or PADDED)
    value_sums = tl.dot(weights.to(upstream.dtype), upstream, value_sums, input_precision=PRECISION)
    grad = weights * (tl.dot(value, tl.trans(upstream), input_precision=PRECISION) - delta[None, :])
    key_sums = tl.dot(grad.to(query.dtype), query, key_sums, input_precision=PRECISION)
    return key_sums, value_sums


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def key_kernel(
    query_ptr, key_ptr, value_ptr, upstream_ptr, log_sum_ptr, grad_key_ptr, grad_value_ptr, partial_ptr,
    keys_ptr, numbers_ptr, place_ptr, type_ptr, range_ptr, work_ptr,
    query_sb, query_sh, query_sl, key_sb, key_sh, key_sl, value_sb, value_sh, value_sl,
    upstream_sb, upstream_sh, upstream_sl, grad_key_sb, grad_key_sh, grad_key_sl,
    grad_value_sb, grad_value_sh, grad_value_sl,
    exponent_scale, scale, queries, capacity, blocks, items, spare,
    GROUP: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, BIASED: tl.constexpr, HIDING: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a block of keys and its values, or a partial sum (B, Hkv, 2·spare, KEYS, D and E)."""
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    item = work_ptr + (batch * items + tl.program_id(0)) * 4
    block = tl.load(item)
    if block >= 0:
        start, end, partial = tl.load(item + 1), tl.load(item + 2), tl.load(item + 3)
        own = range_ptr + (batch * blocks + block) * 4
        full_start = tl.minimum(tl.maximum(tl.load(own + 2), start), end)
        full_end = tl.maximum(tl.minimum(tl.load(own + 3), end), full_start)

        numbers = numbers_ptr + batch * 3 * capacity
        keys = keys_ptr + batch * 2 * capacity
        at = block * KEYS + tl.arange(0, KEYS)
        token = tl.load(keys + at)
        hidden = tl.load(keys + capacity + at) if HIDING else token
        key_place = tl.load(numbers + at)
        last = tl.load(numbers + capacity + at)
        slope = tl.load(numbers + 2 * capacity + at)
        there = token >= 0
        far = token.to(tl.int64)
        key_rows = key_ptr + batch * key_sb + head * key_sh + far * key_sl
        value_rows = value_ptr + batch * value_sb + head * value_sh + far * value_sl
        key = load_rows(key_rows, tl.arange(0, BLOCK_D), there, D, BLOCK_D, True)
        value = load_rows(value_rows, tl.arange(0, BLOCK_E), there, E, BLOCK_E, True)

        query_ptr += batch * query_sb + head * GROUP * query_sh
        upstream_ptr += batch * upstream_sb + head * GROUP * upstream_sh
        heads = batch * tl.num_programs(1) + head
        log_sums = log_sum_ptr + heads * (queries * GROUP)
        deltas = log_sums + tl.num_programs(1).to(tl.int64) * tl.num_programs(2) * (queries * GROUP)
        places, types = place_ptr + batch * queries, type_ptr + batch * queries
        key_sums = tl.zeros([KEYS, BLOCK_D], tl.float32)
        value_sums = tl.zeros([KEYS, BLOCK_E], tl.float32)
        full_steps = (full_end - full_start) // ROWS
        for n in range(0, full_steps):
            key_sums, value_sums = _step(
                full_start + n * ROWS, end, key_sums, value_sums, key, value, key_place, last, slope, hidden,
                exponent_scale, query_ptr, upstream_ptr, log_sums, deltas, places, types, query_sh, query_sl,
                upstream_sh, upstream_sl, GROUP, D, E, BLOCK_D, BLOCK_E, ROWS, BIASED, HIDING, False, PADDED, PRECISION,
            )  # fmt: skip
        behind = full_start + full_steps * ROWS
        left_steps = (full_start - start + ROWS - 1) // ROWS
        right_steps = (end - behind + ROWS - 1) // ROWS
        for n in range(0, left_steps + right_steps):
            is_left = n < left_steps
            first = tl.where(is_left, start + n * ROWS, behind + (n - left_steps) * ROWS)
            key_sums, value_sums = _step(
                first, tl.where(is_left, full_start, end), key_sums, value_sums, key, value, key_place, last, slope,
                hidden, exponent_scale, query_ptr, upstream_ptr, log_sums, deltas, places, types, query_sh, query_sl,
                upstream_sh, upstream_sl, GROUP, D, E, BLOCK_D, BLOCK_E, ROWS, BIASED, HIDING, True, PADDED, PRECISION,
            )  # fmt: skip
        key_sums *= scale

        if partial >= 0:
            lane = tl.arange(0, KEYS)
            out = partial_ptr + (heads * 2 * spare + partial) * (KEYS * (BLOCK_D + BLOCK_E))
            tl.store(out + lane[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :], key_sums)
            out += KEYS * BLOCK_D
            tl.store(out + lane[:, None] * BLOCK_E + tl.arange(0, BLOCK_E)[None, :], value_sums)
        else:
            grad_rows = grad_key_ptr + batch * grad_key_sb + head * grad_key_sh + far * grad_key_sl
            store_rows(grad_rows, tl.arange(0, BLOCK_D), key_sums.to(grad_key_ptr.dtype.element_ty), there, D, BLOCK_D)
            grad_rows = grad_value_ptr + batch * grad_value_sb + head * grad_value_sh + far * grad_value_sl
            grad_value = value_sums.to(grad_value_ptr.dtype.element_ty)
            store_rows(grad_rows, tl.arange(0, BLOCK_E), grad_value, there, E, BLOCK_E)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def sum_kernel(
    partial_ptr, grad_key_ptr, grad_value_ptr, keys_ptr, long_ptr,
    grad_key_sb, grad_key_sh, grad_key_sl, grad_value_sb, grad_value_sh, grad_value_sl, capacity, spare,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    KEYS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Add up the partial sums of PART keys of a block that has several."""
    parts: tl.constexpr = KEYS // PART
    long, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    item = long_ptr + (batch * spare + long) * 4
    block = tl.load(item)
    if block >= 0:
        first, number = tl.load(item + 1), tl.load(item + 2)
        lane = part * PART + tl.arange(0, PART)
        token = tl.load(keys_ptr + batch * 2 * capacity + block * KEYS + lane)
        there, far = token >= 0, token.to(tl.int64)
        size: tl.constexpr = KEYS * (BLOCK_D + BLOCK_E)
        sums = partial_ptr + ((batch * tl.num_programs(1) + head) * 2 * spare + first) * size
        key_at = lane[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
        value_at = KEYS * BLOCK_D + lane[:, None] * BLOCK_E + tl.arange(0, BLOCK_E)[None, :]
        key_sums = tl.zeros([PART, BLOCK_D], tl.float32)
        value_sums = tl.zeros([PART, BLOCK_E], tl.float32)
        for _ in range(number):
            key_sums += tl.load(sums + key_at)
            value_sums += tl.load(sums + value_at)
            sums += size
        grad_rows = grad_key_ptr + batch * grad_key_sb + head * grad_key_sh + far * grad_key_sl
        store_rows(grad_rows, tl.arange(0, BLOCK_D), key_sums.to(grad_key_ptr.dtype.element_ty), there, D, BLOCK_D)
        grad_rows = grad_value_ptr + batch * grad_value_sb + head * grad_value_sh + far * grad_value_sl
        store_rows(grad_rows, tl.arange(0, BLOCK_E), value_sums.to(grad_value_ptr.dtype.element_ty), there, E, BLOCK_E)
