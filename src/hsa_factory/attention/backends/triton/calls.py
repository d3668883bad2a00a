"""The kernels' arguments, put together once for all layers whose tensors look alike."""

import math
from typing import Any

import torch
import triton

from .kernels.forward import forward_kernel
from .kernels.key import key_kernel, sum_kernel
from .kernels.query import query_kernel
from .launch import Launch, strides_of
from .layout import Layout
from .tiles import Tile


_SUMMED = 32  # keys of which a program adds up partial sums


def find_calls(layout: Layout, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> "Calls":
    """Return the calls for tensors of these shapes and strides, made at the first time."""
    what = (query.stride(), key.stride(), value.stride(), query.shape, value.shape, query.dtype, scale)
    found: Calls | None = layout.calls.get(what)
    if found is None:
        found = layout.calls[what] = Calls(layout, query, key, value, scale)
    return found


class Calls:
    """The forward, and what its backward needs.

    It does not hold the layout, which holds it: what the two keep in a GPU's memory would wait for Python to look for circles.

    Args:
        layout: Of the plan.
        query: (B, H, Q, D), of which shape, strides, dtype and device count; `key` and `value` likewise.
        key: (B, Hkv, L, D).
        value: (B, Hkv, L, E).
        scale: Factor of q·k.

    Attributes:
        forward: Launches the forward.
        output_shape: (B, H, Q, E).
        output_strides: Of the output.
        row_shape: (2, B, H, Q), of the rows' logarithms and what the backward puts behind them.
        scale: See above.
        size: Constants of all kernels.
        strides: Of query, key, value and output.
        grid: Programs over blocks of rows.
        query_keys: Tensors of the layout that such programs read.
        what: Type of numbers and device.
    """

    def __init__(
        self, layout: Layout, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> None:
        self.scale = scale
        batch, heads, queries, head_size = query.shape
        key_heads, value_size = key.shape[1], value.shape[3]
        self.what = (query.dtype, query.device)
        self.size = {
            "GROUP": heads // key_heads,
            "D": head_size,
            "E": value_size,
            "BLOCK_D": max(16, triton.next_power_of_2(head_size)),
            "BLOCK_E": max(16, triton.next_power_of_2(value_size)),
        }
        self.output_shape = (batch, heads, queries, value_size)
        self.output_strides = (queries * heads * value_size, value_size, heads * value_size, 1)  # as models go on
        self.row_shape = (2, batch, heads, queries)
        self.grid = (layout.query_blocks, key_heads, batch)
        self.query_keys = (layout.keys, layout.numbers, layout.query_place, layout.query_type, layout.table)
        output = query.new_empty(0).as_strided((0, *self.output_shape[1:]), self.output_strides)
        strides = strides_of(query, key, value)
        self.strides = [*strides, *(0 if batch == 1 else self.output_strides[0], *strides_of(output)[1:])]
        numbers = (*self.strides, scale * math.log2(math.e), queries, layout.capacity, layout.query_blocks)
        self.forward = Launch(
            forward_kernel,
            self.grid,
            self.query_keys,
            numbers,
            12,
            self.constants(layout, layout.tiles.forward),
            self.what,
        )
        self._backwards: dict[tuple[int, ...], Backward] = {}

    def backward(
        self,
        layout: Layout,
        upstream: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> "Backward":
        """Return the calls of the backward for a gradient of such strides."""
        strides = upstream.stride()
        found = self._backwards.get(strides)
        if found is None:
            found = self._backwards[strides] = Backward(self, layout, upstream, query, key, value)
        return found

    def constants(self, layout: Layout, tile: Tile, **more: bool) -> dict[str, Any]:
        """Return what a kernel with these blocks is compiled for."""
        return {
            **self.size,
            "ROWS": tile.rows,
            "KEYS": tile.keys,
            "BIASED": layout.is_biased,
            "HIDING": layout.is_hiding,
            **more,
            "PRECISION": "ieee" if self.what[0] == torch.float32 else None,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }


class Backward:
    """The three kernels of the backward.

    Args:
        calls: Of the forward.
        layout: Of the plan.
        upstream: (B, H, Q, E), gradient of the output.
        query: Of the forward, as `key` and `value`.
        key: See there.
        value: See there.
    """

    def __init__(
        self,
        calls: Calls,
        layout: Layout,
        upstream: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> None:
        scale, what = calls.scale, calls.what
        batch, key_heads, queries = key.shape[0], key.shape[1], query.shape[2]
        scales = (scale * math.log2(math.e), scale, queries, layout.capacity)
        numbers = (*calls.strides, *strides_of(upstream, torch.empty_like(query)), *scales, layout.query_blocks)
        constants = calls.constants(layout, layout.tiles.query)
        self.query = Launch(query_kernel, calls.grid, calls.query_keys, numbers, 18, constants, what)

        tile = layout.tiles.key
        of_grads = strides_of(torch.empty_like(key), torch.empty_like(value))
        numbers = (
            *calls.strides[:9],
            *strides_of(upstream),
            *of_grads,
            *scales,
            layout.blocks,
            layout.items,
            layout.spare,
        )
        kept = (layout.keys, layout.numbers, layout.query_place, layout.query_type, layout.range, layout.work)
        constants = calls.constants(layout, tile, PADDED=layout.is_padded)
        self.key = Launch(key_kernel, (layout.items, key_heads, batch), kept, numbers, 18, constants, what)

        part = min(_SUMMED, tile.keys)
        constants = {name: calls.size[name] for name in ("D", "E", "BLOCK_D", "BLOCK_E")}
        self.sum = Launch(
            sum_kernel,
            (layout.spare * (tile.keys // part), key_heads, batch),
            (layout.keys, layout.long),
            (*of_grads, layout.capacity, layout.spare),
            6,
            constants | {"KEYS": tile.keys, "PART": part},
            what,
        )
        size = tile.keys * (constants["BLOCK_D"] + constants["BLOCK_E"])
        self.partial = torch.empty(
            batch * key_heads * 2 * layout.spare * size, dtype=torch.float32, device=query.device
        )
