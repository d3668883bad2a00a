"""Two kernels for a GPU: new keys go into vLLM's pages, and queries attend to the pages with keys in their sight."""

import triton
import triton.language as tl


# What differs from step to step: where it happens to be a multiple of 16, a kernel would be compiled anew in the midst of serving.
NUMBERS = ["table_stride", "length"]
POINTERS = ["blocks_ptr", "numbers_ptr", "table_ptr", "types_ptr", "turns_ptr"]


@triton.jit(do_not_specialize_on_alignment=["slot_ptr"])
def write_kernel(
    key_ptr, value_ptr, cache_ptr, slot_ptr, key_st, value_st, cache_ss,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Copy key and value of a token, (heads, D) each, side by side into its slot; a slot below 0 is none."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ptr + token).to(tl.int64)
    if slot >= 0:
        at = tl.arange(0, BLOCK)
        inside, head, place = at < HEADS * D, at // D, at % D
        key = tl.load(key_ptr + token * key_st + at, mask=inside)
        value = tl.load(value_ptr + token * value_st + at, mask=inside)
        target = cache_ptr + slot * cache_ss + head * 2 * D + place
        tl.store(target, key.to(cache_ptr.dtype.element_ty), mask=inside)
        tl.store(target + D, value.to(cache_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _of_type(kind, first, second, third):
    return tl.where(kind == 0, first, tl.where(kind == 1, second, third))


@triton.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=POINTERS)
def attend_kernel(
    query_ptr, cache_ptr, output_ptr, blocks_ptr, numbers_ptr, table_ptr, types_ptr, turns_ptr, scale,
    window0, window1, window2, decay0, decay1, decay2, turn0, turn1, turn2, sliding,
    query_st, query_sh, cache_ss, cache_sh, output_st, output_sh, table_stride, length,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, PAGE: tl.constexpr, PAGES: tl.constexpr,
    FADING: tl.constexpr, TURNS: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend: a program for a block of queries of one request and a head of keys; its query heads are rows of one product."""
    one, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    about = blocks_ptr + one * 7
    first, number, start = tl.load(about).to(tl.int64), tl.load(about + 1), tl.load(about + 2)
    row, batch, pages = tl.load(about + 3).to(tl.int64), tl.load(about + 4).to(tl.int64), tl.load(about + 5)
    numbers_ptr += tl.load(about + 6)
    table_ptr += batch * table_stride
    types_ptr += row * length
    turns_ptr += row * length

    rows, lane = tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    member = rows // GROUP
    is_real = member < number
    position = start + member
    query_head = head * GROUP + rows % GROUP
    token = first + member
    inside = is_real[:, None] & (lane < D)[None, :]
    query = tl.load(
        query_ptr + token[:, None] * query_st + query_head[:, None] * query_sh + lane[None, :], mask=inside, other=0.0
    )
    turn = tl.load(turns_ptr + position, mask=is_real, other=0) if TURNS else position
    query_type = tl.load(types_ptr + position, mask=is_real, other=0).to(tl.int32) if HIDDEN else position

    cache_ptr += head * cache_sh
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, BLOCK_D], tl.float32)
    column = tl.arange(0, PAGES * PAGE)
    last = start + number
    for begin in range(0, pages, PAGES):
        which = begin + column // PAGE
        is_listed = which < pages
        logical = tl.load(numbers_ptr + which, mask=is_listed, other=0)
        physical = tl.load(table_ptr + logical, mask=is_listed, other=0)
        place = logical * PAGE + column % PAGE
        is_there = is_listed & (place < last)
        kind = tl.load(types_ptr + place, mask=is_there, other=0).to(tl.int32)
        held = cache_ptr + (physical.to(tl.int64) * PAGE + column % PAGE) * cache_ss
        key = tl.load(held[None, :] + lane[:, None], mask=is_there[None, :] & (lane < D)[:, None], other=0.0)
        logits = tl.dot(query, key.to(query.dtype), input_precision=PRECISION) * scale
        distance = position[:, None] - place[None, :]
        window = _of_type(kind, window0, window1, window2)
        seen = distance <= window[None, :]
        if TURNS:
            later = turn[:, None] - tl.load(turns_ptr + place, mask=is_there, other=0)[None, :]
            seen = (seen | (later <= _of_type(kind, turn0, turn1, turn2)[None, :])) & (distance <= sliding)
        if HIDDEN:
            pair = query_type[:, None] * 3 + kind[None, :]
            seen = seen & ((((HIDDEN >> pair) & 1) == 0) | (distance == 0))
        seen = seen & is_there[None, :] & (distance >= 0)
        if FADING:
            logits -= _of_type(kind, decay0, decay1, decay2)[None, :] * distance.to(tl.float32)
        logits = tl.where(seen, logits, float("-inf"))
        highest = tl.maximum(peak, tl.max(logits, 1))
        base = tl.where(highest == float("-inf"), 0.0, highest)
        powers = tl.exp2(logits - base[:, None])
        shrink = tl.exp2(peak - base)
        total = total * shrink + tl.sum(powers, 1)
        value = tl.load(held[:, None] + D + lane[None, :], mask=is_there[:, None] & (lane < D)[None, :], other=0.0)
        sums = sums * shrink[:, None] + tl.dot(powers.to(value.dtype), value, input_precision=PRECISION)
        peak = highest
    answer = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    target = output_ptr + token[:, None] * output_st + query_head[:, None] * output_sh + lane[None, :]
    tl.store(target, answer.to(output_ptr.dtype.element_ty), mask=inside)
