"""What the kernels read of a plan: made once for all layers with the same rules, without waiting for the GPU."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton

from ...layer_rules import UNLIMITED, LayerRules
from ...places import find_places
from ...plan import AttentionPlan
from .kernels.layout import ALIGN, CHUNK, STRETCH, TABLE, blocks_kernel, count_kernel, move_kernel, work_kernel
from .launch import Launch
from .tiles import Tiles


_STEEPEST = 1e28  # slope, from which on nothing is seen at a distance; times 2³⁰ it is finite
_FARTHEST = 2**30  # tokens or turns: above all there are
_FEWEST_STEPS = 8  # of a piece of work in the backward
_PIECES = 8  # of the longest work in the backward, about, for each multiprocessor


@dataclass(frozen=True)
class LayoutMaker:
    """Makes the layout of a plan: for ``plan.once``.

    Attributes:
        tiles: Blocks of the kernels.
        group: Query heads of a key head.
        key_heads: Heads of keys.
    """

    tiles: Tiles
    group: int
    key_heads: int

    def __call__(self, plan: AttentionPlan, rules: LayerRules) -> "Layout":
        """Make it."""
        return Layout(plan, rules, self.tiles, self.group, self.key_heads)


class Layout:
    """The keys run by run, and what sees what.

    Legend: B batch, Q query length, Hkv heads of keys. Tensors are flat, as the kernels take them.

    Args:
        plan: The plan.
        rules: Of the layer.
        tiles: Blocks of the kernels.
        group: Query heads of a key head.
        key_heads: Heads of keys.

    Attributes:
        capacity: Keys that there is room for: those of a run begin at a multiple of 128.
        keys: of (B, 2, capacity) int32, which key it is (−1: none), and the types of queries that do not see it, a bit each.
        numbers: of (B, 3, capacity) float32, place, last place that sees it, slope for base 2.
        query_place: of (B, Q) float32, 2³⁰ at padding.
        query_type: of (B, Q) int32, 1 << type; of no meaning where nothing is hidden.
        table: of (B, blocks of queries, 24) int32, the blocks of keys that each sees.
        range: of (B, blocks of keys, 4) int32, the rows that see each.
        work: of (B, items, 4) int32, the pieces of the backward, whose number is bounded.
        long: of (B, spare, 4) int32, the blocks of keys that have more than one piece.
        is_biased: Whether something fades.
        is_hiding: Whether pairs are hidden.
        is_padded: Whether there is padding.
        calls: The kernels' arguments by shapes and strides.
    """

    def __init__(self, plan: AttentionPlan, rules: LayerRules, tiles: Tiles, group: int, key_heads: int) -> None:
        self.tiles, self.calls = tiles, dict[Any, Any]()
        device, batch, length, queries = plan.device, plan.batch_size, plan.key_length, plan.query_length
        self.is_biased, self.is_hiding = any(rules.decays), bool(rules.hide)
        self.is_padded = plan.is_padding is not None
        chunks = -(-length // CHUNK.value)
        self.capacity = (length // ALIGN.value + 3) * ALIGN.value
        self.query_blocks = -(-queries * group // tiles.forward.rows)
        self.blocks = self.capacity // tiles.key.keys
        least = _FEWEST_STEPS * tiles.key.rows
        self.spare = max(1, min(_PIECES * _processors(device) // (key_heads * batch), self.blocks))
        self.items = self.blocks + self.spare

        words = batch * self.capacity
        whole = {
            "keys": 2 * words,
            "table": batch * self.query_blocks * TABLE.value,
            "range": batch * self.blocks * 4,
            "work": batch * self.items * 4,
            "long": batch * self.spare * 4,
            "query_type": batch * queries if self.is_hiding else 0,
            "counts": batch * 3 * chunks,
            "runs": batch * 8,
        }
        of_stretches = batch * 2 * chunks * (CHUNK.value // STRETCH.value)
        self.keys, self.table, self.range, self.work, self.long, self.query_type, counts, runs = _allocate(
            [*whole.values()], torch.int32, device
        )
        self.numbers, self.query_place, ends = _allocate(
            [3 * words, batch * queries, of_stretches], torch.float32, device
        )

        place, last, order = _find_ends(plan, rules)
        types, turns = plan.semantic_ids.contiguous(), plan.turns(rules)
        padding = types if plan.is_padding is None else plan.is_padding.contiguous()
        in_turns = last is None and turns is not None
        what: dict[str, Any] = {"PADDED": self.is_padded, "ORDERED": order is not None, "HIDING": self.is_hiding}
        turns = types if turns is None else turns.contiguous()
        order, last = types if order is None else order, place if last is None else last
        kind = (turns.dtype, device)
        of_types = _runs(rules)
        Launch(count_kernel, (chunks, batch, 1), (), (length, queries, chunks, *of_types), 0, what, kind)(
            types, place, padding, order, counts, ends, self.query_place, self.query_type
        )
        slopes = [min(decay * math.log2(math.e), _STEEPEST) for decay in rules.decays]
        hidden = [sum(1 << query for query in {q for q, k in rules.hide if k == key}) for key in range(3)]
        windows = [min(window, _FARTHEST) for window in rules.window_reach]
        numbers = (length, chunks, self.capacity, *of_types, *slopes, *hidden)
        numbers += (
            *windows,
            *[min(turn, _FARTHEST) for turn in rules.turn_reach],
            min(rules.sliding_reach, _FARTHEST),
        )
        what |= {"WHOLE": last is place, "IN_TURNS": in_turns}
        Launch(move_kernel, (chunks, batch, 1), (), (*numbers, length.bit_length()), 0, what, kind)(
            types, place, last, turns, padding, order, counts, self.keys, self.numbers, runs
        )
        numbers = (length, queries, chunks, self.capacity, length.bit_length(), self.query_blocks, self.blocks)
        rows = tiles.forward.rows
        most = rows // group + (2 if rows % group else 0)  # queries that rows of one block belong to
        what = {
            "GROUP": group,
            "ROWS": rows,
            "SPAN": triton.next_power_of_2(most),
            "KEYS": tiles.forward.keys,
            "KEYS_BACKWARD": tiles.key.keys,
            "HIDING": self.is_hiding,
            "num_warps": 1,
        }
        Launch(blocks_kernel, (self.query_blocks + self.blocks, batch, 1), (), numbers, 0, what, kind)(
            self.query_place, self.numbers, runs, ends, self.table, self.range
        )
        numbers = (self.blocks, self.items, self.spare, least)
        Launch(work_kernel, (batch, 1, 1), (), numbers, 0, {"ROWS": tiles.key.rows}, kind)(
            self.range, self.work, self.long
        )


def _find_ends(
    plan: AttentionPlan, rules: LayerRules
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return places, the last place that sees each key (None: the kernel finds it), and the order by places (None: as it is)."""
    if plan.has_whole_rows:
        return plan.positions.contiguous(), None, None
    place, order = find_places(plan)
    last = plan.last_seen(rules)
    if order is not None:
        last = place - plan.positions + last
    return place.contiguous(), last.contiguous(), None if order is None else order.contiguous()


def _allocate(sizes: list[int], dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return tensors of these sizes, each at a multiple of 16 bytes: one allocation is less work for the CPU than many."""
    room = [-(-size // 4) * 4 for size in sizes]
    parts: tuple[torch.Tensor, ...] = torch.empty(sum(room), dtype=dtype, device=device).split(room)
    return parts


def _runs(rules: LayerRules) -> list[int]:
    """Return the run of each type: types that are seen equally long share one, and those that are seen longest come first."""
    reach = []
    for window, turns in zip(rules.window_reach, rules.turn_reach):
        reach.append((window, -1 if window >= UNLIMITED else turns))
    ranked = sorted(set(reach), reverse=True)
    return [ranked.index(one) for one in reach]


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
