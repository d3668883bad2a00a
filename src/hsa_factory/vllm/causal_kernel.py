"""vLLM's own CPU kernel, for queries of which HSA hides nothing and fades nothing: plain causal attention."""

import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, _get_attn_isa


_BLOCK = 32  # tokens: what its fastest variants take


def has_causal_kernel(device: torch.device, head_size: int) -> bool:
    """Return whether the kernel is there, for heads of this size."""
    return device.type == "cpu" and head_size in CPUAttentionBackend.get_supported_head_sizes()


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, output: torch.Tensor
) -> None:
    """Attend to all keys up to the query's own.

    Args:
        query: (Q, H, D); the queries are the last Q keys.
        key: (Hkv, K, D).
        value: (Hkv, K, D).
        scale: Factor of q·k.
        output: (Q, H, D), written to.
    """
    heads, length, size = key.shape
    blocks = -(-length // _BLOCK)
    isa = _get_attn_isa(query.dtype, _BLOCK, size)
    cache = query.new_zeros(blocks, heads, 2 * _BLOCK, size)
    keys, values = cache.chunk(2, dim=2)
    slots, table = torch.arange(length), torch.arange(blocks, dtype=torch.int32)[None]
    ops.cpu_attn_reshape_and_cache(key.transpose(0, 1), value.transpose(0, 1), keys, values, slots, isa)
    lengths = torch.tensor([length], dtype=torch.int32)
    starts = torch.tensor([0, query.shape[0]], dtype=torch.int32)
    schedule = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=1,
        num_heads=query.shape[1],
        num_kv_heads=heads,
        head_dim=size,
        seq_lens=lengths,
        dtype=query.dtype,
        query_start_loc=starts,
        causal=True,
        sliding_window_size=-1,
        isa=isa,
        enable_kv_split=True,
    )
    ops.cpu_attention_with_kv_cache(
        query=query,
        key_cache=keys,
        value_cache=values,
        output=output,
        query_start_loc=starts,
        seq_lens=lengths,
        scale=scale,
        causal=True,
        alibi_slopes=None,
        sliding_window=-1,
        block_table=table,
        softcap=0.0,
        scheduler_metadata=schedule,
        s_aux=None,
    )
