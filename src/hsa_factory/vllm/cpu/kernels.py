"""Two kernels for a CPU: new keys go into vLLM's pages, and queries attend to those keys there that are in their sight.

Attention is computed as in FlashAttention (Dao, 2023): blocks of keys, one after the other, and a softmax that is brought up to date.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types
from numba.core.ccallback import CFunc

from .instructions import (
    KNOWS_HALF,
    LANES,
    LINE,
    ROWS,
    WIDE,
    bytes_of,
    dots,
    fetched,
    narrowed,
    next_of,
    product,
    transposed,
    weights,
    widened,
)
from .records import (
    BLOCK,
    COPIED,
    KEYS,
    PARTIAL,
    block_at,
    call_at,
    float32_at,
    int32_at,
    int64_at,
    sight_at,
    tile_at,
    uint8_at,
    uint16_at,
)
from .sight import HIDDEN, first_seen, hide, is_seen, limit, limit_with_turns, number_until


_FEW = 8  # rows, query heads of queries: for as many or fewer it does not pay to transpose keys
_END = np.int32(2**31 - 1)  # of all positions, and of all numbers of turns
_BEFORE_ALL = np.int32(-(2**31))  # numbers of turns, which may be below 0


@dataclass(frozen=True)
class Kernels:
    """Compiled functions of C of one address, that of a `CALL`, which several threads may enter at once.

    Attributes:
        write: Writes new keys and values.
        attend: Attends.
        join: Puts together what parts found.
        wide: Numbers of a row in memory of its own.
    """

    write: CFunc
    attend: CFunc
    join: CFunc
    wide: int

    def scratch_bytes(self, rows: int) -> int:
        """Return how much memory a thread needs.

        Args:
            rows: The most of a tile: queries times query heads of a key head.
        """
        rows += -rows % ROWS
        numbers = 2 * rows * self.wide + 3 * KEYS * self.wide + ROWS * KEYS + rows * (1 + LANES)
        return -(-(4 * numbers + BLOCK.itemsize) // LINE) * LINE


def wide_of(size: int) -> int:
    """Return a head's size in whole registers."""
    return size + -size % LANES


@cache
def kernels_for(size: int, kind: str) -> Kernels:
    """Compile the kernels, once in a process; it takes seconds.

    Args:
        size: D, of a head.
        kind: Of queries, keys, values and answers: float32, bfloat16 or float16.

    Raises:
        ValueError: If the processor has no such numbers.
    """
    if kind == "float16" and not KNOWS_HALF:
        raise ValueError(
            "This processor has no instructions for float16 (F16C): serve in another dtype, such as bfloat16."
        )
    wide = wide_of(size)
    copy = _copy(size, kind)
    return Kernels(_write(copy), _attend(size, kind, wide, copy), _join(size, kind, wide), wide)


@njit
def _place_of(call, tile, head, row, of_token, of_head):
    """Return where the numbers of a tile's row begin, with the strides of tokens and heads: a row is a query and one of its heads."""
    token, member = tile.first + row // call.group, head * call.group + row % call.group
    return token * of_token + member * of_head


def _copy(size: int, kind: str) -> Any:
    """Return a function that writes key and value of a token and a head."""
    width, number_at = bytes_of(kind), float32_at if kind == "float32" else uint16_at

    @njit
    def copy(call, token, slot, head):
        row = (slot // call.block * call.heads + head) * call.block + slot % call.block
        target = carray(number_at(call.cache + width * 2 * size * row), (2 * size,))
        key = carray(number_at(call.key + width * (token * call.key_token + head * call.key_head)), (size,))
        value = carray(number_at(call.value + width * (token * call.value_token + head * call.value_head)), (size,))
        for place in range(size):
            target[place] = key[place]
            target[size + place] = value[place]

    return copy


def _write(copy: Any) -> CFunc:
    """Return the function of C that writes new keys and values."""

    @cfunc(types.void(types.intp))
    def write(address):
        call = carray(call_at(address), (1,))[0]
        slots = carray(int64_at(call.slots), (call.tokens,))
        while True:
            task = next_of(address + 8)
            if task * COPIED >= call.tokens:
                break
            for token in range(task * COPIED, min((task + 1) * COPIED, call.tokens)):
                for head in range(call.heads):
                    copy(call, token, slots[token], head)

    return write


def _attend(size: int, kind: str, wide: int, copy: Any) -> CFunc:
    """Return the function of C that attends."""
    width = bytes_of(kind)
    vectors = wide // LANES
    panels, rest = vectors // WIDE, vectors % WIDE
    panel = WIDE * LANES
    logits_of, add, add_rest = product(WIDE, False), product(WIDE, True), product(max(rest, 1), True)
    dots_of, weigh, widen, narrow = dots(wide), weights(KEYS), widened(size, kind), narrowed(size, kind)
    transpose, fetch = transposed(KEYS, wide), fetched(2 * size * width)

    @njit
    def fill(call, block, tile, sight, turns, head_row, cursor):
        """Take the next keys in sight, `left` at most.

        Returns the cursor behind them, how many there are, whether all queries see them unfaded, the first of their positions, and the
        last query that sees one of them by its window.
        """
        kind, index, end, left = cursor
        last_query = tile.position + tile.queries - 1
        count, is_free, earliest, latest = 0, sight.hides == 0, np.int64(_END), np.int64(-1)
        room = tile.room
        while count < KEYS and left > 0:
            if index == end:
                kind += 1
                index, end = in_sight(tile, sight, turns, kind)
                continue
            places = carray(int32_at(tile.places + 4 * kind * room), (room,))
            slots = carray(int64_at(tile.slots + 8 * kind * room), (room,))
            take = min(KEYS - count, end - index, left)
            reach, decay = sight.windows[kind], sight.decays[kind]
            for key in range(take):
                place = places[index + key]
                block.places[count + key] = place
                block.last[count + key] = min(place + reach, np.int64(_END))
                block.decays[count + key] = decay
                block.kinds[count + key] = kind
                block.sources[count + key] = slots[index + key] + head_row
            for key in range(index + take, min(index + take + KEYS, end)):
                fetch(call.cache + width * 2 * size * (slots[key] + head_row))
            if len(turns):
                in_turns = sight.turns[kind]
                for key in range(take):
                    last_turn = min(turns[places[index + key]] + in_turns, np.int64(_END))
                    block.last_turn[count + key] = last_turn if in_turns >= 0 else _BEFORE_ALL
            first, last = np.int64(places[index]), np.int64(places[index + take - 1])
            is_free &= decay == 0 and last <= tile.position and is_seen(first, last_query, kind, sight, turns)
            earliest, latest = min(earliest, first), max(latest, min(last + reach, np.int64(_END)))
            count += take
            index += take
            left -= take
        for key in range(count, KEYS):
            is_free = False
            block.places[key] = _END
        return (kind, index, end, left), count, is_free, earliest, latest

    @njit
    def in_sight(tile, sight, turns, kind):
        places = carray(int32_at(tile.places + 4 * kind * tile.room), (tile.room,))
        number = tile.numbers[kind]
        first = first_seen(places, number, tile.position, kind, sight, turns)
        return first, max(first, number_until(places, number, tile.position + tile.queries - 1))

    @njit
    def part_of(tile, sight, turns):
        """Return the cursor at which a tile's part of the keys begins, with how many keys it has."""
        total = 0
        for kind in range(3):
            first, end = in_sight(tile, sight, turns, kind)
            total += end - first
        step = -(-total // (KEYS * tile.parts)) * KEYS
        begin = min(step * tile.part, total)
        left = min(step, total - begin)
        for kind in range(3):
            first, end = in_sight(tile, sight, turns, kind)
            if begin < end - first:
                return kind, first + begin, end, left
            begin -= end - first
        return 2, 0, 0, 0

    @njit
    def attend_tile(call, tile, sight, head, scratch):
        group, heads_row = call.group, head * call.block
        rows = tile.queries * group
        padded = (rows + ROWS - 1) // ROWS * ROWS
        row_bytes = 4 * wide
        query_at, sums_at = scratch, scratch + padded * row_bytes
        read_at = sums_at + padded * row_bytes
        keys_at, values_at = read_at + KEYS * row_bytes, read_at + 2 * KEYS * row_bytes
        logits_at = read_at + 3 * KEYS * row_bytes
        totals_at = logits_at + 4 * ROWS * KEYS
        tops_at = totals_at + 4 * LANES * padded
        queries = carray(float32_at(query_at), (padded, wide))
        sums = carray(float32_at(sums_at), (padded, wide))
        logits = carray(float32_at(logits_at), (ROWS, KEYS))
        tops, totals = carray(float32_at(tops_at), (padded,)), carray(float32_at(totals_at), (padded, LANES))
        block = carray(block_at(tops_at + 4 * padded), (1,))[0]
        read, values = carray(float32_at(read_at), (KEYS, wide)), carray(float32_at(values_at), (KEYS, wide))
        length = tile.position + tile.queries
        turns = carray(int64_at(tile.turns), (length if tile.turns else 0,))
        kinds = carray(uint8_at(tile.types), (length,))

        for row in range(rows):
            place = _place_of(call, tile, head, row, call.query_token, call.query_head)
            widen(call.query + width * place, query_at + row * row_bytes)
            for place in range(size):
                queries[row, place] *= sight.scale
        queries[rows:] = 0
        for blank in (queries, read, values):  # what stands there may be no number
            blank[:, size:] = 0
        sums[:] = 0
        tops[:] = HIDDEN
        totals[:] = 0
        is_few = rows <= _FEW
        cursor = part_of(tile, sight, turns)
        while cursor[3] > 0:
            cursor, count, is_free, earliest, latest = fill(call, block, tile, sight, turns, heads_row, cursor)
            for key in range(count):
                source = call.cache + width * 2 * size * block.sources[key]
                widen(source, read_at + key * row_bytes)
                widen(source + width * size, values_at + key * row_bytes)
            if not is_few:
                transpose(read_at, keys_at)
            for strip in range(0, rows, ROWS):
                stop = min(strip + ROWS, rows)
                is_behind = len(turns) == 0 and tile.position + strip // group > latest
                if is_behind or tile.position + (stop - 1) // group < earliest:
                    continue
                if is_few:
                    for row in range(strip, stop):
                        for key in range(0, count, LANES):
                            at = logits_at + 4 * ((row - strip) * KEYS + key)
                            dots_of(query_at + row * row_bytes, read_at + key * row_bytes, at)
                else:
                    for key in range(0, KEYS, panel):
                        own = query_at + strip * row_bytes
                        logits_of(own, wide, keys_at + 4 * key, KEYS, logits_at + 4 * key, KEYS, wide)
                for row in range(strip, stop):
                    own_logits = logits[row - strip]
                    if not is_free:
                        query = tile.position + row // group
                        if len(turns):
                            limit_with_turns(
                                own_logits, query, turns[query], block.places, block.last, block.last_turn, sight.sliding,
                                block.decays,
                            )  # fmt: skip
                        else:
                            limit(own_logits, query, block.places, block.last, block.decays)
                        if sight.hides:
                            hide(own_logits, query, kinds[query], block.places, block.kinds, sight.hides)
                    at = logits_at + 4 * KEYS * (row - strip)
                    shrink = weigh(at, tops_at + 4 * row, totals_at + 4 * LANES * row)
                    if shrink != 1:
                        for place in range(wide):
                            sums[row, place] *= shrink
                own_sums = sums_at + strip * row_bytes
                for at in range(panels):
                    begin = 4 * at * panel
                    add(logits_at, KEYS, values_at + begin, wide, own_sums + begin, wide, count)
                if rest:
                    begin = 4 * panels * panel
                    add_rest(logits_at, KEYS, values_at + begin, wide, own_sums + begin, wide, count)

        for row in range(rows):
            total = np.float32(0)
            for lane in range(LANES):
                total += totals[row, lane]
            if tile.parts == 1:
                place = _place_of(call, tile, head, row, call.output_token, call.output_head)
                narrow(sums_at + row * row_bytes, call.output + width * place, np.float32(1) / total)
            else:
                room = PARTIAL + wide
                partial = carray(float32_at(tile.partial + 4 * room * (head * rows + row)), (room,))
                partial[0], partial[1] = tops[row], total
                partial[PARTIAL:] = sums[row]

    @cfunc(types.void(types.intp))
    def attend(address):
        call = carray(call_at(address), (1,))[0]
        sight = carray(sight_at(call.sight), (1,))[0]
        tiles = carray(tile_at(call.tiles), (call.number,))
        slots = carray(int64_at(call.slots), (call.tokens,))
        scratch = call.scratch + next_of(address) * call.scratch_bytes
        while True:
            task = next_of(address + 8)
            if task >= call.number * call.heads:
                break
            head = task % call.heads
            if call.number == 1:  # a lone tile writes its keys itself: no other thread reads those of its head
                for token in range(call.tokens):
                    copy(call, token, slots[token], head)
            attend_tile(call, tiles[task // call.heads], sight, head, scratch)

    return attend


def _join(size: int, kind: str, wide: int) -> CFunc:
    """Return the function of C that joins parts."""
    width, narrow = bytes_of(kind), narrowed(size, kind)
    room = PARTIAL + wide

    @njit
    def join_tile(call, tiles, first, head, scratch):
        tile = tiles[first]
        rows = tile.queries * call.group
        sums = carray(float32_at(scratch), (wide,))
        for row in range(rows):
            at = 4 * room * (head * rows + row)
            top, total = HIDDEN, np.float32(0)
            for part in range(tile.parts):
                top = max(top, carray(float32_at(tiles[first + part].partial + at), (room,))[0])
            sums[:] = 0
            for part in range(tile.parts):
                own = carray(float32_at(tiles[first + part].partial + at), (room,))
                share = np.float32(2) ** (own[0] - top)
                total += share * own[1]
                for place in range(wide):
                    sums[place] += share * own[PARTIAL + place]
            place = _place_of(call, tile, head, row, call.output_token, call.output_head)
            narrow(scratch, call.output + width * place, np.float32(1) / total)

    @cfunc(types.void(types.intp))
    def join(address):
        call = carray(call_at(address), (1,))[0]
        tiles = carray(tile_at(call.tiles), (call.number,))
        scratch = call.scratch + next_of(address) * call.scratch_bytes
        while True:
            task = next_of(address + 8)
            if task >= call.number * call.heads:
                break
            tile = task // call.heads
            if tiles[tile].part == 0:
                join_tile(call, tiles, tile, task % call.heads, scratch)

    return join
