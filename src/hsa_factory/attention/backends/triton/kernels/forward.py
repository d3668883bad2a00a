"""The forward: a program computes a block of rows, over the blocks of keys that they see."""

import triton
import triton.language as tl

from .layout import LANES, NOWHERE, TABLE
from .parts import exponents, is_visible, load_keys, load_rows, nth_full, nth_partial, store_rows


NOT_SPECIALIZED = ["queries", "capacity", "query_blocks"]


@triton.jit
def _step(
    block, token, peak, total, sums, query, place, query_type, scale, key_ptr, value_ptr, keys, numbers, capacity, key_sl, value_sl,
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
    if MASKED:
        last = tl.load(numbers + capacity + at)
        hidden = tl.load(keys + capacity + at) if HIDING else token
        visible = is_visible(
            place[:, None], key_place[None, :], last[None, :], query_type[:, None], hidden[None, :], HIDING
        )
        logits = tl.where(visible, logits, float("-inf"))
    highest = tl.maximum(peak, tl.max(logits, 1))
    base = tl.where(highest == float("-inf"), 0.0, highest) if MASKED else highest
    powers = tl.exp2(logits - base[:, None])
    shrink = tl.exp2(peak - base)
    total = total * shrink + tl.sum(powers, 1)
    sums = sums * shrink[:, None]
    value = load_rows(value_ptr + far * value_sl, tl.arange(0, BLOCK_E), there, E, BLOCK_E, MASKED)
    sums = tl.dot(powers.to(value.dtype), value, sums, input_precision=PRECISION)
    return highest, total, sums


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def forward_kernel(
    query_ptr, key_ptr, value_ptr, output_ptr, log_sum_ptr, keys_ptr, numbers_ptr, place_ptr, type_ptr, table_ptr,
    query_sb, query_sh, query_sl, key_sb, key_sh, key_sl, value_sb, value_sh, value_sl, output_sb, output_sh, output_sl,
    scale, queries, capacity, query_blocks,
    GROUP: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, BIASED: tl.constexpr, HIDING: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the output, and the logarithms (base 2) of the sums of exponentials: (B, Hkv, Q·GROUP), ∞ at padding."""
    one = query_blocks - 1 - tl.program_id(0)  # the last see most
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    row = one * ROWS + tl.arange(0, ROWS)
    token = row // GROUP
    inside = token < queries
    place = tl.load(place_ptr + batch * queries + token, mask=inside, other=NOWHERE)
    query_type = tl.load(type_ptr + batch * queries + token, mask=inside, other=0) if HIDING else row
    is_real = place < NOWHERE
    far, query_head = token.to(tl.int64), head * GROUP + row % GROUP
    query_rows = query_ptr + batch * query_sb + query_head * query_sh + far * query_sl
    query = load_rows(query_rows, tl.arange(0, BLOCK_D), is_real, D, BLOCK_D, True)

    key_ptr += batch * key_sb + head * key_sh
    value_ptr += batch * value_sb + head * value_sh
    keys, numbers = keys_ptr + batch * 2 * capacity, numbers_ptr + batch * 3 * capacity
    table = table_ptr + (batch * query_blocks + one) * TABLE
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, BLOCK_E], tl.float32)

    end0, end1, end2 = tl.load(table), tl.load(table + 1), tl.load(table + 2)
    offset0, offset1, offset2 = tl.load(table + LANES), tl.load(table + LANES + 1), tl.load(table + LANES + 2)
    block = nth_full(0, end0, end1, offset0, offset1, offset2)
    token_now = load_keys(keys, block, 0 < end2, 0, KEYS)
    for n in range(0, end2):
        following = nth_full(n + 1, end0, end1, offset0, offset1, offset2)
        token_next = load_keys(keys, following, n + 1 < end2, 0, KEYS)
        peak, total, sums = _step(
            block, token_now, peak, total, sums, query, place, query_type, scale, key_ptr, value_ptr, keys, numbers,
            capacity, key_sl, value_sl, D, E, BLOCK_D, BLOCK_E, KEYS, BIASED, HIDING, False, PRECISION,
        )  # fmt: skip
        block, token_now = following, token_next
    left0, left1, left2 = tl.load(table + 2 * LANES), tl.load(table + 2 * LANES + 1), tl.load(table + 2 * LANES + 2)
    right0, right1, right2 = tl.load(table + 4 * LANES), tl.load(table + 4 * LANES + 1), tl.load(table + 4 * LANES + 2)
    block = nth_partial(0, table, left0, left1, left2, right0, right1)
    token_now = load_keys(keys, block, 0 < right2, -1, KEYS)
    for n in range(0, right2):
        following = nth_partial(n + 1, table, left0, left1, left2, right0, right1)
        token_next = load_keys(keys, following, n + 1 < right2, -1, KEYS)
        peak, total, sums = _step(
            block, token_now, peak, total, sums, query, place, query_type, scale, key_ptr, value_ptr, keys, numbers,
            capacity, key_sl, value_sl, D, E, BLOCK_D, BLOCK_E, KEYS, BIASED, HIDING, True, PRECISION,
        )  # fmt: skip
        block, token_now = following, token_next

    sees_any = is_real & (total > 0)
    sums = tl.where(sees_any[:, None], sums / tl.where(sees_any, total, 1.0)[:, None], 0.0)
    output_rows = output_ptr + batch * output_sb + query_head * output_sh + far * output_sl
    store_rows(output_rows, tl.arange(0, BLOCK_E), sums.to(output_ptr.dtype.element_ty), inside, E, BLOCK_E)
    log_sum = tl.where(sees_any, peak + tl.log2(total), float("inf"))
    rows = queries * GROUP
    tl.store(log_sum_ptr + (batch * tl.num_programs(1) + head) * rows + row, log_sum, mask=inside)
