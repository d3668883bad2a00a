"""Attention over vLLM's pages on a CPU: what a forward tells the kernels, and how they are started."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...attention.layer_rules import LayerRules
from .kernels import kernels_for, wide_of
from .keys import KeysByType
from .memory import address_of, scratch
from .records import CALL, COPIED, KEYS, PARTIAL, SIGHT, TILE
from .team import team, threads_here


_ROWS = 256  # of a tile, about: with more, its own do not stay in the processor's cache; with fewer, keys are fetched more often
_PART = 8 * KEYS  # keys: with fewer, it does not pay to divide them
_LOG2E = 1.4426950408889634
_COUNTERS = 2  # the first numbers of a `CALL`


@dataclass(frozen=True)
class Piece:
    """Consecutive queries of a request that see the same types.

    Attributes:
        place: Where the first stands among the tokens of the forward.
        start: Its position.
        stop: Position after the last.
        types: (L,) uint8, of the request's tokens, in force for these queries.
        turns: (L,) int64, their turn numbers. None: the rules have no turns.
        keys: Where the request's keys lie, those of the queries included.
    """

    place: int
    start: int
    stop: int
    types: NDArray[np.uint8]
    turns: NDArray[np.int64] | None
    keys: KeysByType


class Forward:
    """A forward's tokens, for all layers.

    Args:
        pieces: Together, all queries.
        slots: (T,) int64, where the tokens' keys go: block·block size + place in it.
        group: Query heads of a key head.
        kv_heads: Hkv.
        size: D.
    """

    def __init__(
        self, pieces: Sequence[Piece], slots: NDArray[np.int64], group: int, kv_heads: int, size: int
    ) -> None:
        self.pieces, self._slots, self._group = pieces, slots, group  # the tiles have their addresses
        queries = max(1, _ROWS // group)
        starts = [(piece, start) for piece in pieces for start in range(piece.start, piece.stop, queries)]
        parts = max(1, min(threads_here() // (len(starts) * kv_heads), max(piece.stop for piece in pieces) // _PART))
        self._rows = group * min(queries, max(piece.stop - piece.start for piece in pieces))
        room = kv_heads * self._rows * (PARTIAL + wide_of(size))
        self._partial = np.empty((len(starts) * parts, room), np.float32) if parts > 1 else None
        begin = 0 if self._partial is None else address_of(self._partial)
        tiles = [
            (
                piece.place + start - piece.start,
                min(queries, piece.stop - start),
                start,
                *piece.keys.told,
                address_of(piece.types),
                0 if piece.turns is None else address_of(piece.turns),
                part,
                parts,
                begin + 4 * room * (index * parts + part),
            )
            for index, (piece, start) in enumerate(starts)
            for part in range(parts)
        ]
        self._tiles = np.array(tiles, TILE)
        self._calls: dict[int, _Call] = {}

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
        sight: NDArray[np.void],
        output: torch.Tensor,
    ) -> None:
        """Write the tokens' keys and values into the cache of a layer, and then what the queries see.

        Args:
            query: (T, H, D).
            key: (T, Hkv, D).
            value: (T, Hkv, D).
            cache: (blocks, Hkv, block size, 2·D), of the dtype of all the others.
            sight: What `sight_of` returned; the same object in layers alike.
            output: (T, H, D), written to.
        """
        assert len(query) >= len(self._slots), "these are another forward's tokens"  # as of engines in several threads
        call = self._calls.get(id(sight))
        if call is None:
            call = self._calls[id(sight)] = self._call(cache, sight)
        call.run((*_places(query), *_places(key), *_places(value), *_places(output), cache.data_ptr()))

    def _call(self, cache: torch.Tensor, sight: NDArray[np.void]) -> "_Call":
        assert cache.is_contiguous(), "rows of the cache follow each other"
        _, heads, block, width = cache.shape
        kernels = kernels_for(width // 2, kind_of(cache.dtype))
        room, tasks = kernels.scratch_bytes(self._rows), len(self._tiles) * heads
        memory = scratch(threads_here() * room)
        told = {
            "heads": heads,
            "group": self._group,
            "block": block,
            "slots": address_of(self._slots),
            "tokens": len(self._slots),
            "tiles": address_of(self._tiles),
            "number": len(self._tiles),
            "sight": address_of(sight),
            "scratch": address_of(memory),
            "scratch_bytes": room,
        }
        copies = -(-len(self._slots) // COPIED)
        used = [] if len(self._tiles) == 1 else [team(kernels.write.address, copies)]  # else `attend` writes
        used += [team(kernels.attend.address, tasks)]
        used += [] if self._partial is None else [team(kernels.join.address, tasks)]
        return _Call(used, told, (sight, memory))


class _Call:
    """Kernels, and what they are told in all layers; counters, and what differs from layer to layer, come first."""

    def __init__(
        self, kernels: Sequence[Callable[[int], None]], told: dict[str, int], arrays: tuple[NDArray[Any], ...]
    ) -> None:
        self._arrays = arrays  # kept, as their addresses are told; and no other sight gets the same id
        self._kernels = kernels
        self._told = np.array([told.get(name, 0) for name in CALL.names or ()], np.int64)  # all of it is int64
        self._address = address_of(self._told)

    def run(self, of_layer: tuple[int, ...]) -> None:
        self._told[_COUNTERS : _COUNTERS + len(of_layer)] = of_layer
        for kernel in self._kernels:
            self._told[:_COUNTERS] = 0
            kernel(self._address)


def _places(values: torch.Tensor) -> tuple[int, int, int]:
    """Return where (T, heads, D) begin, and the strides of tokens and heads."""
    token, head, number = values.stride()
    assert number == 1, "the numbers of a head follow each other"
    return values.data_ptr(), token, head


def kind_of(dtype: torch.dtype) -> str:
    """Return what kernels call the numbers of a dtype."""
    return str(dtype).removeprefix("torch.")


@cache
def sight_of(rules: LayerRules, scale: float) -> NDArray[np.void]:
    """Return a `SIGHT` of a layer's rules and the factor of q·k."""
    decays = tuple(decay * _LOG2E for decay in rules.decays)
    reach = (tuple(rules.window_reach), tuple(rules.turn_reach), rules.sliding_reach)
    return np.array([(*reach, rules.hide_bits, decays, scale * _LOG2E)], SIGHT)
