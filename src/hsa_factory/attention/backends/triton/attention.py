"""HSA attention in Triton kernels, forward and backward."""

import math
from typing import Any

import torch

from ...layer_rules import LayerRules
from ...plan import AttentionPlan
from .forward_kernel import forward_kernel
from .key_kernels import key_kernel, sum_kernel
from .layout import Layout, LayoutMaker
from .query_kernel import query_kernel
from .tiles import Tile, Tiles, find_tiles


_SUMMED = 32  # keys of which a program adds up partial sums


def triton_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    rules: LayerRules,
    scale: float | None = None,
) -> torch.Tensor:
    """Compute HSA attention in Triton kernels.

    Legend: B batch, H query heads, Hkv key/value heads, Q query length, L key length, D head size, E value head size.

    Args:
        query: (B, H, Q, D), float32, bfloat16 or float16; logits, bias and softmax are float32.
        key: (B, Hkv, L, D).
        value: (B, Hkv, L, E).
        plan: Built for these lengths.
        rules: Of the layer.
        scale: Factor of q·k; None: 1/√D.

    Returns:
        (B, H, Q, E) in the dtype of `query`, zeros at padding.
    """
    if query.numel() == 0 or value.numel() == 0:
        return query.new_zeros(*query.shape[:3], value.shape[3]) + 0 * (query.sum() + key.sum() + value.sum())
    maker = layout_maker(query, key, value)
    scale = query.shape[3] ** -0.5 if scale is None else scale
    with torch.cuda.device_of(query):
        layout = plan.once(maker, rules)
    output: torch.Tensor = _Attention.apply(query, key, value, layout, maker.tiles, scale)
    return output


def layout_maker(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> LayoutMaker:
    """Return what makes the layout of a plan for such tensors: for ``plan.once``."""
    head_size = max(query.shape[3], value.shape[3], 16)
    tiles = find_tiles(1 << (head_size - 1).bit_length(), query.dtype != torch.float32)
    return LayoutMaker(tiles, query.shape[1] // key.shape[1], key.shape[1])


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: Layout,
        tiles: Tiles,
        scale: float,
    ) -> torch.Tensor:
        query, key, value = (_with_whole_rows(tensor) for tensor in (query, key, value))
        batch, heads, queries, _ = query.shape
        output = query.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)
        log_sum = torch.empty(batch, heads, queries, dtype=torch.float32, device=query.device)
        tile = tiles.forward
        with torch.cuda.device_of(query):
            forward_kernel[layout.query_blocks, key.shape[1], batch](
                *(
                    query,
                    key,
                    value,
                    output,
                    log_sum,
                    layout.keys,
                    layout.numbers,
                    layout.query_place,
                    layout.query_type,
                ),
                *(layout.table, scale * math.log2(math.e)),
                *(*query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *output.stride()[:3]),
                *(queries, layout.capacity, layout.query_blocks),
                **_shape(query, key, value, layout, tile),
            )
        ctx.save_for_backward(query, key, value, output, log_sum)
        ctx.layout, ctx.tiles, ctx.scale = layout, tiles, scale
        return output

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, log_sum = ctx.saved_tensors
        layout, tiles, scale = ctx.layout, ctx.tiles, ctx.scale
        upstream = _with_whole_rows(upstream)
        batch, heads, queries, _ = query.shape
        key_heads = key.shape[1]
        delta = torch.empty_like(log_sum)
        grad_query = torch.empty_like(query)
        make = torch.zeros_like if layout.is_padded else torch.empty_like
        grad_key, grad_value = make(key), make(value)
        exponent_scale = scale * math.log2(math.e)
        what = _shape(query, key, value, layout, tiles.query)
        partial = torch.empty(
            (batch, key_heads, 2 * layout.spare, tiles.key.keys, what["BLOCK_D"] + what["BLOCK_E"]),
            dtype=torch.float32,
            device=query.device,
        )
        with torch.cuda.device_of(query):
            query_kernel[layout.query_blocks, key_heads, batch](
                *(query, key, value, output, upstream, log_sum, delta, grad_query),
                *(
                    layout.keys,
                    layout.numbers,
                    layout.query_place,
                    layout.query_type,
                    layout.table,
                    exponent_scale,
                    scale,
                ),
                *(*query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *output.stride()[:3]),
                *(*upstream.stride()[:3], *grad_query.stride()[:3]),
                *(queries, layout.capacity, layout.query_blocks),
                **what,
            )
            key_kernel[layout.items, key_heads, batch](
                *(query, key, value, upstream, log_sum, delta, grad_key, grad_value, partial),
                *(layout.keys, layout.numbers, layout.query_place, layout.query_type, layout.range, layout.work),
                *(exponent_scale, scale, *query.stride()[:3], *key.stride()[:3], *value.stride()[:3]),
                *(*upstream.stride()[:3], *grad_key.stride()[:3], *grad_value.stride()[:3]),
                *(queries, layout.capacity, layout.blocks, layout.items, layout.spare),
                **_shape(query, key, value, layout, tiles.key),
                PADDED=layout.is_padded,
            )
            part = min(_SUMMED, tiles.key.keys)
            sum_kernel[layout.spare * (tiles.key.keys // part), key_heads, batch](
                *(partial, grad_key, grad_value, layout.keys, layout.long),
                *(*grad_key.stride()[:3], *grad_value.stride()[:3], layout.capacity, layout.spare),
                **{name: what[name] for name in ("D", "E", "BLOCK_D", "BLOCK_E")},
                KEYS=tiles.key.keys,
                PART=part,
            )
        return grad_query, grad_key, grad_value, None, None, None


def _with_whole_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


def _shape(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, tile: Tile) -> dict[str, Any]:
    """Return what a kernel is compiled for."""
    D, E = query.shape[3], value.shape[3]
    return {
        "GROUP": query.shape[1] // key.shape[1],
        "D": D,
        "E": E,
        "BLOCK_D": max(16, 1 << (D - 1).bit_length()),
        "BLOCK_E": max(16, 1 << (E - 1).bit_length()),
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "BIASED": layout.is_biased,
        "HIDING": layout.is_hiding,
        "PRECISION": "ieee" if query.dtype == torch.float32 else None,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
