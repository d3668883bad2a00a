"""Dense HSA attention through torch's fused kernels: the bias is built once per forward and shared by all layers."""

import torch
import torch.nn.functional as F

from ..layer_rules import LayerRules
from ..plan import AttentionPlan


def dense_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    rules: LayerRules,
    scale: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Compute HSA attention with `scaled_dot_product_attention` and an additive (B, 1, Q, L) bias.

    The bias stays in float32 on CPU. Elsewhere the fused kernels take it in the dtype of `query` only.

    Args:
        query: (B, H, Q, D).
        key: (B, Hkv, L, D).
        value: (B, Hkv, L, E).
        plan: Built for these lengths.
        rules: Of the layer.
        scale: Factor of q·k; None: 1/√D.
        dropout: Probability with which attention weights are dropped.

    Returns:
        (B, H, Q, E) in the dtype of `query`. Costs O(Q·L) memory once per forward, O(H·Q·L·D) time per layer.
    """
    query, key, value = plan.zero_padding(query, key, value)
    bias_dtype = query.dtype
    if query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16):
        bias_dtype = torch.float32

    is_causal = plan.is_causal(rules)
    bias = None if is_causal else plan.dense_bias(bias_dtype, rules)
    groups = query.shape[1] // key.shape[1]
    if query.shape[2] == 1 and groups > 1:  # heads that share a key are rows of one product, which reads it once
        grouped = query.reshape(query.shape[0], key.shape[1], groups, query.shape[3])
        output = F.scaled_dot_product_attention(grouped, key, value, attn_mask=bias, dropout_p=dropout, scale=scale)
        return output.reshape(*query.shape[:3], value.shape[3])

    on_cpu = query.device.type == "cpu"
    if groups > 1 and not on_cpu:  # CUDA's fused kernels take no mask together with grouped heads
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=bias,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=groups > 1 and on_cpu,
    )
