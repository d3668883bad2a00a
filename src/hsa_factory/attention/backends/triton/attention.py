"""HSA attention in Triton kernels, forward and backward."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ...layer_rules import LayerRules
from ...plan import AttentionPlan
from .calls import find_calls
from .layout import Layout, LayoutMaker
from .tiles import find_tiles


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
        (B, H, Q, E) in the dtype of `query`, zeros at padding. It can be differentiated once.
    """
    if query.numel() == 0 or value.numel() == 0:
        return query.new_zeros(*query.shape[:3], value.shape[3]) + 0 * (query.sum() + key.sum() + value.sum())
    scale = query.shape[3] ** -0.5 if scale is None else float(scale)
    if torch.compiler.is_compiling():
        return _attend_uncompiled(query, key, value, plan, rules, scale)
    return _attend(query, key, value, plan, rules, scale)


def layout_maker(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> LayoutMaker:
    """Return what makes the layout of a plan for such tensors: for ``plan.once``."""
    return _layout_maker(query.shape[1], key.shape[1], max(query.shape[3], value.shape[3]), query.dtype, query.device)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    rules: LayerRules,
    scale: float,
) -> torch.Tensor:
    if query.is_cuda and query.get_device() != torch.cuda.current_device():
        with torch.cuda.device(query.device):
            return _attend(query, key, value, plan, rules, scale)
    layout = plan.once(layout_maker(query, key, value), rules)
    output: torch.Tensor = _Attention.apply(query, key, value, layout, scale)  # type: ignore[no-untyped-call]
    return output


# addresses of tensors are nothing for torch's compiler: a model's graph ends here and goes on behind it
_attend_uncompiled: Callable[..., torch.Tensor] = torch.compiler.disable(_attend)


@cache
def _layout_maker(heads: int, key_heads: int, head_size: int, dtype: torch.dtype, device: torch.device) -> LayoutMaker:
    tiles = find_tiles(head_size, dtype != torch.float32, _shared_kib(device))
    return LayoutMaker(tiles, heads // key_heads, key_heads)


def _shared_kib(device: torch.device) -> int:
    if device.type != "cuda":  # Triton's interpreter
        return 0
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin) // 1024


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float
    ) -> torch.Tensor:
        query, key, value = _with_whole_rows(query), _with_whole_rows(key), _with_whole_rows(value)
        calls = find_calls(layout, query, key, value, scale)
        output = query.new_empty_strided(calls.output_shape, calls.output_strides)
        rows = query.new_empty(calls.row_shape, dtype=torch.float32)
        calls.forward(query, key, value, output, rows)
        ctx.save_for_backward(query, key, value, output, rows)
        ctx.calls, ctx.layout = calls, layout
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, rows = ctx.saved_tensors
        upstream = _with_whole_rows(upstream)
        calls = ctx.calls.backward(ctx.layout, upstream, query, key, value)
        grad_query = torch.empty_like(query)
        make = torch.zeros_like if ctx.layout.is_padded else torch.empty_like
        grad_key, grad_value = make(key), make(value)
        calls.query(query, key, value, output, upstream, rows, grad_query)
        calls.key(query, key, value, upstream, rows, grad_key, grad_value, calls.partial)
        calls.sum(calls.partial, grad_key, grad_value)
        return grad_query, grad_key, grad_value, None, None


def _with_whole_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()
