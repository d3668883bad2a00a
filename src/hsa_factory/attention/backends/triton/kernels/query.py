"""The gradient of the queries: a program computes a block of rows, as in the forward."""

import triton
import triton.language as tl

from .layout import LANES, NOWHERE, TABLE
from .parts import exponents, is_visible, load_keys, load_rows, nth_full, nth_partial, store_rows


NOT_SPECIALIZED = ["queries", "capacity", "query_blocks"]


@triton.jit
def _step(
    block, token, sums, query, upstream, place, query_type, log_sum, delta, scale, key_ptr, value_ptr, keys, numbers, capacity,
    key_sl, value_sl,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, KEYS: tl.constexpr,
    BIASED: tl.constexpr, HIDING: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    at = block * KEYS + tl.arange(0, KEYS)
    key_place = tl.load(numbers + at)
    slope = tl.load(numbers + 2 * capacity + at)
    there = token >= 0
    far = token.to(tl.int64)
    key = load_rows(key_ptr + far * key_sl, tl.arange(0, BLOCK_D), there, D, BLOCK_D, MASKED)
    logits = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    logits = exponents(logits, scale, place[:, None], key_place[None, :], slope[None, :], BIASED)
    weights = tl.exp2(logits - log_sum[:, None])
    if MASKED:
        last = tl.load(numbers + capacity + at)
        hidden = tl.load(keys + capacity + at) if HIDING else token
        visible = is_visible(
            place[:, None], key_place[None, :], last[None, :], query_type[:, None], hidden[None, :], HIDING
        )
        weights = tl.where(visible, weights, 0.0)
    value = load_rows(value_ptr + far * value_sl, tl.arange(0, BLOCK_E), there, E, BLOCK_E, MASKED)
    grad = weights * (tl.dot(upstream, tl.trans(value), input_precision=PRECISION) - delta[:, None])
    return tl.dot(grad.to(key.dtype), key, sums, input_precision=PRECISION)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def query_kernel(
    query_ptr, key_ptr, value_ptr, output_ptr, upstream_ptr, log_sum_ptr, grad_ptr,
    keys_ptr, numbers_ptr, place_ptr, type_ptr, table_ptr,
    query_sb, query_sh, query_sl, key_sb, key_sh, key_sl, value_sb, value_sh, value_sl, output_sb, output_sh, output_sl,
    upstream_sb, upstream_sh, upstream_sl, grad_sb, grad_sh, grad_sl,
    exponent_scale, scale, queries, capacity, query_blocks,
    GROUP: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, BIASED: tl.constexpr, HIDING: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of the queries, and the sum of output · its gradient behind the logarithms."""
    one = query_blocks - 1 - tl.program_id(0)
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    row = one * ROWS + tl.arange(0, ROWS)
    token = row // GROUP
    inside = token < queries
    place = tl.load(place_ptr + batch * queries + token, mask=inside, other=NOWHERE)
    query_type = tl.load(type_ptr + batch * queries + token, mask=inside, other=0) if HIDING else row
    is_real = place < NOWHERE
    far, query_head = token.to(tl.int64), head * GROUP + row % GROUP
    query_rows = query_ptr + batch * query_sb + query_head * query_sh + far * query_sl
    output_rows = output_ptr + batch * output_sb + query_head * output_sh + far * output_sl
    upstream_rows = upstream_ptr + batch * upstream_sb + query_head * upstream_sh + far * upstream_sl
    query = load_rows(query_rows, tl.arange(0, BLOCK_D), is_real, D, BLOCK_D, True)
    upstream = load_rows(upstream_rows, tl.arange(0, BLOCK_E), is_real, E, BLOCK_E, True)
    output = load_rows(output_rows, tl.arange(0, BLOCK_E), is_real, E, BLOCK_E, True)
    delta = tl.sum(output.to(tl.float32) * upstream.to(tl.float32), 1)
    own = (batch * tl.num_programs(1) + head) * (queries * GROUP) + row
    rows = tl.num_programs(1).to(tl.int64) * tl.num_programs(2) * (queries * GROUP)
    tl.store(log_sum_ptr + rows + own, delta, mask=inside)
    log_sum = tl.load(log_sum_ptr + own, mask=inside, other=float("inf"))

    key_ptr += batch * key_sb + head * key_sh
    value_ptr += batch * value_sb + head * value_sh
    keys, numbers = keys_ptr + batch * 2 * capacity, numbers_ptr + batch * 3 * capacity
    table = table_ptr + (batch * query_blocks + one) * TABLE
    sums = tl.zeros([ROWS, BLOCK_D], tl.float32)

    end0, end1, end2 = tl.load(table), tl.load(table + 1), tl.load(table + 2)
    offset0, offset1, offset2 = tl.load(table + LANES), tl.load(table + LANES + 1), tl.load(table + LANES + 2)
    block = nth_full(0, end0, end1, offset0, offset1, offset2)
    token_now = load_keys(keys, block, 0 < end2, 0, KEYS)
    for n in range(0, end2):
        following = nth_full(n + 1, end0, end1, offset0, offset1, offset2)
        token_next = load_keys(keys, following, n + 1 < end2, 0, KEYS)
        sums = _step(
            block, token_now, sums, query, upstream, place, query_type, log_sum, delta, exponent_scale, key_ptr, value_ptr, keys,
            numbers, capacity, key_sl, value_sl, D, E, BLOCK_D, BLOCK_E, KEYS, BIASED, HIDING, False, PRECISION,
        )  # fmt: skip
        block, token_now = following, token_next
    left0, left1, left2 = tl.load(table + 2 * LANES), tl.load(table + 2 * LANES + 1), tl.load(table + 2 * LANES + 2)
    right0, right1, right2 = tl.load(table + 4 * LANES), tl.load(table + 4 * LANES + 1), tl.load(table + 4 * LANES + 2)
    block = nth_partial(0, table, left0, left1, left2, right0, right1)
    token_now = load_keys(keys, block, 0 < right2, -1, KEYS)
    for n in range(0, right2):
        following = nth_partial(n + 1, table, left0, left1, left2, right0, right1)
        token_next = load_keys(keys, following, n + 1 < right2, -1, KEYS)
        sums = _step(
            block, token_now, sums, query, upstream, place, query_type, log_sum, delta, exponent_scale, key_ptr, value_ptr, keys,
            numbers, capacity, key_sl, value_sl, D, E, BLOCK_D, BLOCK_E, KEYS, BIASED, HIDING, True, PRECISION,
        )  # fmt: skip
        block, token_now = following, token_next

    grad_rows = grad_ptr + batch * grad_sb + query_head * grad_sh + far * grad_sl
    store_rows(grad_rows, tl.arange(0, BLOCK_D), (sums * scale).to(grad_ptr.dtype.element_ty), inside, D, BLOCK_D)
