"""Kernels that lay out the keys of a plan and find what sees what; four small ones, so that the CPU has little to launch.

Numbers of tokens are float32, which is exact up to 2²⁴. A *run* holds the keys of one reach, in the order of their places;
there are up to three, one for each type, and each begins at a multiple of `ALIGN` keys.
"""

import triton
import triton.language as tl


NOWHERE = tl.constexpr(2.0**30)  # place of a query or key that is not there
CHUNK = tl.constexpr(1024)  # tokens a program counts or moves
STRETCH = tl.constexpr(32)  # tokens whose places are summed up as least and greatest
ALIGN = tl.constexpr(128)  # keys at whose multiples a run may begin
LANES = tl.constexpr(4)  # of the tables by run: one more than there are, as vectors are powers of two
TABLE = tl.constexpr(24)  # numbers a block of queries has: six of `LANES`

NOT_SPECIALIZED = [
    "length",
    "queries",
    "chunks",
    "capacity",
    "search_steps",
    "blocks",
    "items",
    "spare",
    "query_blocks",
]
NOT_SPECIALIZED += ["run0", "run1", "run2", "slope0", "slope1", "slope2", "hide0", "hide1", "hide2", "least"]
NOT_SPECIALIZED += ["window0", "window1", "window2", "turns0", "turns1", "turns2", "sliding"]


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def count_kernel(
    types_ptr, place_ptr, padding_ptr, order_ptr, count_ptr, ends_ptr, query_place_ptr, query_type_ptr, length,
    queries, chunks, run0, run1, run2,
    PADDED: tl.constexpr, ORDERED: tl.constexpr, HIDING: tl.constexpr,
):  # fmt: skip
    """Count each run's keys in a chunk, sum up the places of its queries, and write these in the kernels' form.

    count: (B, 3, chunks). ends: (B, 2, chunks·32) least and greatest place of each stretch of tokens that are queries.
    query_place: (B, Q), `NOWHERE` at padding. query_type: (B, Q), 1 << type. order: the tokens in the order of their places.
    """
    chunk, row = tl.program_id(0), tl.program_id(1)
    start = row.to(tl.int64) * length
    number = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = number < length

    token = number
    if ORDERED:
        token = tl.load(order_ptr + start + number, mask=inside, other=0).to(tl.int32)
    kind = tl.load(types_ptr + start + token, mask=inside, other=0)
    run = tl.where(kind == 0, run0, tl.where(kind == 1, run1, run2))
    is_key = inside
    if PADDED:
        is_key = is_key & (tl.load(padding_ptr + start + token, mask=inside, other=1) == 0)
    counts = count_ptr + row * 3 * chunks + chunk
    for other in tl.static_range(3):
        tl.store(counts + other * chunks, tl.sum((is_key & (run == other)).to(tl.int32)))

    place = tl.load(place_ptr + start + number, mask=inside, other=0).to(tl.float32)
    query = number - (length - queries)
    is_query = inside & (query >= 0)
    is_real = is_query
    if PADDED:
        is_real = is_real & (tl.load(padding_ptr + start + number, mask=inside, other=1) == 0)
    out = row.to(tl.int64) * queries + query
    tl.store(query_place_ptr + out, tl.where(is_real, place, NOWHERE), mask=is_query)
    if HIDING:
        kind = tl.load(types_ptr + start + number, mask=inside, other=0).to(tl.int32)
        tl.store(query_type_ptr + out, 1 << kind, mask=is_query)
    stretches: tl.constexpr = CHUNK // STRETCH
    least = tl.min(tl.reshape(tl.where(is_real, place, NOWHERE), [stretches, STRETCH]), 1)
    greatest = tl.max(tl.reshape(tl.where(is_real, place, -1.0), [stretches, STRETCH]), 1)
    ends = ends_ptr + row * 2 * chunks * stretches + chunk * stretches + tl.arange(0, stretches)
    tl.store(ends, least)
    tl.store(ends + chunks * stretches, greatest)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def move_kernel(
    types_ptr, place_ptr, last_ptr, turns_ptr, padding_ptr, order_ptr, count_ptr, keys_ptr, numbers_ptr,
    runs_ptr, length, chunks, capacity, run0, run1, run2, slope0, slope1, slope2, hide0, hide1, hide2, window0,
    window1, window2, turns0, turns1, turns2, sliding, search_steps,
    PADDED: tl.constexpr, ORDERED: tl.constexpr, HIDING: tl.constexpr, WHOLE: tl.constexpr,
    IN_TURNS: tl.constexpr,
):  # fmt: skip
    """Write the keys run by run.

    keys: (B, 2, capacity) int32: which key it is, −1 for none; the types of queries that do not see it, a bit each.
    numbers: (B, 3, capacity) float32: place, last place that sees it, slope. runs: (B, 2, 4): where runs begin, their keys.
    Where rows are WHOLE, the last place is found here, as `last_seen` finds it.
    """
    chunk, row = tl.program_id(0), tl.program_id(1)
    start = row.to(tl.int64) * length
    number = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = number < length
    token = number
    if ORDERED:
        token = tl.load(order_ptr + start + number, mask=inside, other=0).to(tl.int32)
    kind = tl.load(types_ptr + start + token, mask=inside, other=0)
    run = tl.where(kind == 0, run0, tl.where(kind == 1, run1, run2))
    is_key = inside
    if PADDED:
        is_key = is_key & (tl.load(padding_ptr + start + token, mask=inside, other=1) == 0)

    keys = keys_ptr + row.to(tl.int64) * 2 * capacity
    numbers = numbers_ptr + row.to(tl.int64) * 3 * capacity
    runs = runs_ptr + row * 2 * LANES
    target = tl.zeros([CHUNK], tl.int32)
    begin = 0
    for other in tl.static_range(3):
        before, total = 0, 0
        for first in range(0, chunks, 128):
            one = first + tl.arange(0, 128)
            count = tl.load(count_ptr + (row * 3 + other) * chunks + one, mask=one < chunks, other=0)
            total += tl.sum(count)
            before += tl.sum(tl.where(one < chunk, count, 0))
        own = is_key & (run == other)
        target = tl.where(own, begin + before + tl.cumsum(own.to(tl.int32), 0) - 1, target)
        end = (begin + total + ALIGN - 1) // ALIGN * ALIGN
        if chunk == 0:
            tl.store(runs + other, begin)
            tl.store(runs + LANES + other, total)
            missing = begin + total + tl.arange(0, ALIGN)
            is_missing = missing < end
            tl.store(keys + missing, -1, mask=is_missing)
            tl.store(numbers + missing, NOWHERE, mask=is_missing)
            tl.store(numbers + capacity + missing, -1.0, mask=is_missing)
            tl.store(numbers + 2 * capacity + missing, 0.0, mask=is_missing)
            if HIDING:
                tl.store(keys + capacity + missing, 0, mask=is_missing)
        begin = end
    if chunk == 0:
        tl.store(runs + 3, begin)
        tl.store(runs + LANES + 3, 0)

    tl.store(keys + target, token, mask=is_key)
    place = tl.load(place_ptr + start + token, mask=inside, other=0).to(tl.float32)
    if WHOLE:  # each row is one document without padding
        last = place + tl.where(kind == 0, window0, tl.where(kind == 1, window1, window2))
        if IN_TURNS:
            reach = tl.where(kind == 0, turns0, tl.where(kind == 1, turns1, turns2))
            turn = tl.load(turns_ptr + start + token, mask=inside, other=0).to(tl.int64) + reach
            low = tl.zeros([CHUNK], tl.int32)
            high = tl.zeros([CHUNK], tl.int32) + length
            for _ in range(search_steps):
                middle = (low + high) // 2
                is_open = low < high
                is_in = tl.load(turns_ptr + start + middle, mask=is_open, other=0).to(tl.int64) <= turn
                low = tl.where(is_open & is_in, middle + 1, low)
                high = tl.where(is_open & (is_in == 0), middle, high)
            in_turns = tl.load(place_ptr + start + tl.maximum(low - 1, 0), mask=inside, other=0).to(tl.float32)
            last = tl.where(reach < 0, last, tl.maximum(last, in_turns))
            last = tl.minimum(last, place + sliding)
        last = tl.minimum(last, tl.load(place_ptr + start + length - 1).to(tl.float32))
    else:
        last = tl.load(last_ptr + start + token, mask=inside, other=0).to(tl.float32)
    slope = tl.where(kind == 0, slope0, tl.where(kind == 1, slope1, slope2))
    tl.store(numbers + target, place, mask=is_key)
    tl.store(numbers + capacity + target, last, mask=is_key)
    tl.store(numbers + 2 * capacity + target, slope, mask=is_key)
    if HIDING:
        hidden = tl.where(kind == 0, hide0, tl.where(kind == 1, hide1, hide2))
        tl.store(keys + capacity + target, hidden, mask=is_key)


@triton.jit
def _count_below(values_ptr, begin, total, bound, search_steps):
    """Count, by run, the keys whose number is below the bound; numbers never fall within a run."""
    low = tl.zeros_like(total)
    high = total
    for _ in range(search_steps):
        middle = (low + high) // 2
        is_open = low < high
        is_below = tl.load(values_ptr + begin + middle, mask=is_open, other=0) < bound
        low = tl.where(is_open & is_below, middle + 1, low)
        high = tl.where(is_open & (is_below == 0), middle, high)
    return low


@triton.jit
def _find_keys(
    one, row, query_place_ptr, places, lasts, begin, total, lane, table_ptr, queries, search_steps, query_blocks,
    GROUP: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr, KEYS: tl.constexpr, HIDING: tl.constexpr,
):  # fmt: skip
    first = one * ROWS // GROUP
    query = first + tl.arange(0, SPAN)
    is_inside = (query <= (one * ROWS + ROWS - 1) // GROUP) & (query < queries)
    place = tl.load(query_place_ptr + row.to(tl.int64) * queries + query, mask=is_inside, other=NOWHERE)
    lowest = tl.min(place)
    highest = tl.max(tl.where(place < NOWHERE, place, -1.0))
    end = _count_below(places, begin, total, highest + 1, search_steps)
    start = _count_below(lasts, begin, total, lowest, search_steps)
    full_end = _count_below(places, begin, total, lowest + 1, search_steps)
    full_start = _count_below(lasts, begin, total, highest, search_steps)
    is_empty = end <= start
    start = tl.where(is_empty, 0, (begin + start) // KEYS)
    end = tl.where(is_empty, 0, (begin + end + KEYS - 1) // KEYS)
    if HIDING:
        full_start, full_end = end, end
    else:
        full_start = tl.minimum(tl.maximum((begin + full_start + KEYS - 1) // KEYS, start), end)
        full_end = tl.minimum(tl.maximum((begin + full_end) // KEYS, full_start), end)
    out = table_ptr + (row * query_blocks + one).to(tl.int64) * TABLE + lane
    bound = tl.cumsum(full_end - full_start, 0)
    tl.store(out, bound)
    tl.store(out + LANES, full_end - bound)
    bound = tl.cumsum(full_start - start, 0)
    tl.store(out + 2 * LANES, bound)
    tl.store(out + 3 * LANES, full_start - bound)
    bound = tl.sum(full_start - start) + tl.cumsum(end - full_end, 0)
    tl.store(out + 4 * LANES, bound)
    tl.store(out + 5 * LANES, end - bound)


@triton.jit
def _find_queries(
    block, row, places, lasts, ends_ptr, begin, total, range_ptr, length, queries, chunks, blocks,
    GROUP: tl.constexpr, KEYS_BACKWARD: tl.constexpr, HIDING: tl.constexpr,
):  # fmt: skip
    key = block * KEYS_BACKWARD
    number = tl.sum(tl.where((begin <= key) & (key < begin + total), begin + total - key, 0))
    last_key = key + tl.minimum(number, KEYS_BACKWARD) - 1
    has_keys = number > 0
    earliest = tl.load(places + key, mask=has_keys, other=NOWHERE)
    latest = tl.load(places + last_key, mask=has_keys, other=NOWHERE)
    soonest_end = tl.load(lasts + key, mask=has_keys, other=-1.0)
    last_end = tl.load(lasts + last_key, mask=has_keys, other=-1.0)
    stretches = chunks * (CHUNK // STRETCH)
    least_ptr = ends_ptr + row * 2 * stretches
    first, end, full = stretches, 0, stretches
    for start in range(0, stretches, 128):
        at = start + tl.arange(0, 128)
        least = tl.load(least_ptr + at, mask=at < stretches, other=NOWHERE)
        greatest = tl.load(least_ptr + stretches + at, mask=at < stretches, other=-1.0)
        sees = (greatest >= earliest) & (least <= last_end)
        sees_all = sees & (least >= latest) & (greatest <= soonest_end)
        first = tl.minimum(first, tl.min(tl.where(sees, at, stretches)))
        end = tl.maximum(end, tl.max(tl.where(sees, at + 1, 0)))
        full = tl.minimum(full, tl.min(tl.where(sees_all, at, stretches)))
    if HIDING:
        full = stretches
    full_end = end
    for start in range(full // 128 * 128, end, 128):
        at = start + tl.arange(0, 128)
        least = tl.load(least_ptr + at, mask=at < stretches, other=NOWHERE)
        greatest = tl.load(least_ptr + stretches + at, mask=at < stretches, other=-1.0)
        sees_all = (greatest >= earliest) & (least <= last_end) & (least >= latest) & (greatest <= soonest_end)
        full_end = tl.minimum(full_end, tl.min(tl.where((at > full) & (sees_all == 0), at, full_end)))
    first, full = tl.minimum(first, end), tl.minimum(full, end)
    offset = length - queries
    out = range_ptr + (row * blocks + block) * 4
    tl.store(out, tl.minimum(tl.maximum(first * STRETCH - offset, 0), queries) * GROUP)
    end_row = tl.minimum(tl.maximum(end * STRETCH - offset, 0), queries) * GROUP
    tl.store(out + 1, tl.where(has_keys, end_row, -1))
    tl.store(out + 2, tl.minimum(tl.maximum(full * STRETCH - offset, 0), queries) * GROUP)
    tl.store(out + 3, tl.minimum(tl.maximum(full_end * STRETCH - offset, 0), queries) * GROUP)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def blocks_kernel(
    query_place_ptr, numbers_ptr, runs_ptr, ends_ptr, table_ptr, range_ptr, length, queries, chunks, capacity,
    search_steps, query_blocks, blocks,
    GROUP: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr, KEYS: tl.constexpr,
    KEYS_BACKWARD: tl.constexpr, HIDING: tl.constexpr,
):  # fmt: skip
    """Find the blocks of keys that each block of queries sees, and the queries that see each block of keys.

    table: (B, query_blocks, 24), what `nth_full` and `nth_partial` read. range: (B, blocks, 4) rows: first and end of
    those that may see the block, and of those among them that see all of it; −1 as the end: it has no keys.
    """
    one, row = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, LANES)
    begin = tl.load(runs_ptr + row * 2 * LANES + lane)
    total = tl.load(runs_ptr + (row * 2 + 1) * LANES + lane)
    places = numbers_ptr + row.to(tl.int64) * 3 * capacity
    lasts = places + capacity
    if one < query_blocks:
        _find_keys(
            one, row, query_place_ptr, places, lasts, begin, total, lane, table_ptr, queries, search_steps, query_blocks,
            GROUP, ROWS, SPAN, KEYS, HIDING,
        )  # fmt: skip
    else:
        _find_queries(
            one - query_blocks, row, places, lasts, ends_ptr, begin, total, range_ptr, length, queries, chunks, blocks,
            GROUP, KEYS_BACKWARD, HIDING,
        )  # fmt: skip


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def work_kernel(range_ptr, work_ptr, long_ptr, blocks, items, spare, least, ROWS: tl.constexpr):
    """Cut the rows that see each block of keys into pieces of about the same size.

    A piece has at least `least` rows, and at least one in `spare` of all, so that there are at most `spare` pieces more than
    blocks. The blocks with most rows come first, as the run of those seen for ever does.

    work: (B, items, 4): block of keys (−1: none), first row, end, and where its partial sums go (−1: it is whole).
    long: (B, spare, 4): block of keys (−1: none), its first partial sum, and how many there are.
    """
    row = tl.program_id(0)
    lane = tl.arange(0, 256)
    ranges = range_ptr + row * blocks * 4
    rows = tl.zeros([], tl.int64)
    for start in range(0, blocks, 256):
        at = start + lane
        begin = tl.load(ranges + at * 4, mask=at < blocks, other=0)
        end = tl.load(ranges + at * 4 + 1, mask=at < blocks, other=0)
        rows += tl.sum(tl.maximum(end - begin, 0).to(tl.int64))
    size = tl.maximum((rows + spare - 1) // spare, least)
    size = ((size + ROWS - 1) // ROWS * ROWS).to(tl.int32)

    work, longs = work_ptr + row * items * 4, long_ptr + row * spare * 4
    count, sums, long = 0, 0, 0
    for start in range(0, blocks, 256):
        at = start + lane
        begin = tl.load(ranges + at * 4, mask=at < blocks, other=0)
        end = tl.load(ranges + at * 4 + 1, mask=at < blocks, other=-1)
        pieces = tl.where(end < 0, 0, tl.maximum((end - begin + size - 1) // size, 1))
        is_long = pieces > 1
        out = work + (count + tl.cumsum(pieces, 0) - pieces) * 4
        own_sums = tl.where(is_long, pieces, 0)
        first_sum = sums + tl.cumsum(own_sums, 0) - own_sums
        listed = longs + (long + tl.cumsum(is_long.to(tl.int32), 0) - 1) * 4
        tl.store(listed, at, mask=is_long)
        tl.store(listed + 1, first_sum, mask=is_long)
        tl.store(listed + 2, pieces, mask=is_long)
        for piece in range(tl.max(pieces)):
            is_piece = piece < pieces
            tl.store(out + piece * 4, at, mask=is_piece)
            tl.store(out + piece * 4 + 1, begin + piece * size, mask=is_piece)
            tl.store(out + piece * 4 + 2, tl.minimum(begin + (piece + 1) * size, end), mask=is_piece)
            tl.store(out + piece * 4 + 3, tl.where(is_long, first_sum + piece, -1), mask=is_piece)
        count += tl.sum(pieces)
        sums += tl.sum(own_sums)
        long += tl.sum(is_long.to(tl.int32))
    for start in range(count, items, 256):
        tl.store(work + (start + lane) * 4, -1, mask=start + lane < items)
    for start in range(long, spare, 256):
        tl.store(longs + (start + lane) * 4, -1, mask=start + lane < spare)
