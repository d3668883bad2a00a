"""The specification: dense HSA attention in float32, written to be read. Every other backend is tested against it."""

import torch
import torch.nn.functional as F

from ..layer_rules import LayerRules
from ..plan import AttentionPlan


def reference_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    rules: LayerRules,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute softmax(q·k·scale + bias)·v with every intermediate in at least float32.

    Legend: B batch, H query heads, Hkv key/value heads (H a multiple of it), Q query length, L key length, D head
    size, E value head size.

    Args:
        query: (B, H, Q, D).
        key: (B, Hkv, L, D).
        value: (B, Hkv, L, E).
        plan: Built for these lengths. Keys and queries at its padding are read as zeros: NaN there does not leak.
        rules: Of the layer.
        scale: Factor of q·k; None: 1/√D.
        softcap: Logits become softcap·tanh(logits/softcap) before the bias (Gemma 2). None: no cap.
        sinks: (H,) one extra logit per head that takes part in the softmax and brings no value (gpt-oss). None: none.
        dropout: Probability with which attention weights are dropped.

    Returns:
        The output (B, H, Q, E) and the attention weights (B, H, Q, L), both in the dtype of `query`.
    """
    dtype = query.dtype
    compute_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    query, key, value = plan.zero_padding(query, key, value)
    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, dim=1)
    value = value.repeat_interleave(groups, dim=1)

    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = (query.to(compute_dtype) @ key.to(compute_dtype).transpose(-1, -2)) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)

    logits = logits + plan.dense_bias(compute_dtype, rules)
    if sinks is not None:
        column = sinks.to(compute_dtype).reshape(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        weights = torch.cat([logits, column], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = logits.softmax(dim=-1)

    weights = F.dropout(weights, dropout, training=dropout > 0)
    return (weights @ value.to(compute_dtype)).to(dtype), weights.to(dtype)
