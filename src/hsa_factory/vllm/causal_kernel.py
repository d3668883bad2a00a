"""vLLM's own CPU kernel, for queries of which HSA hides nothing and fades nothing: plain causal attention."""

from math import prod

import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, _get_attn_isa

from .kept_memory import kept


_BLOCK = 32  # tokens: what its fastest variants take


def has_causal_kernel(device: torch.device, head_size: int) -> bool:
    """Return whether the kernel is there, for heads of this size."""
    return device.type == "cpu" and head_size in CPUAttentionBackend.get_supported_head_sizes()


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    output: torch.Tensor,
    made: dict[tuple[object, ...], torch.Tensor] | None = None,
) -> None:
    """Attend to all keys up to the query's own.

    Args:
        query: (Q, H, D); the queries are the last Q keys.
        key: (K, Hkv, D).
        value: (K, Hkv, D).
        scale: Factor of q·k.
        output: (Q, H, D), written to.
        made: What the kernel plans is kept there, for layers with as many queries and keys. None: it is not kept.
    """
    length, heads, size = key.shape
    isa = _get_attn_isa(query.dtype, _BLOCK, size)
    shape = (-(-length // _BLOCK), heads, 2 * _BLOCK, size)
    keys, values = kept("blocks", prod(shape), query.dtype).view(shape).chunk(2, dim=2)
    keys[-1], values[-1] = 0, 0  # what stands behind the last token must be finite
    ops.cpu_attn_reshape_and_cache(key, value, keys, values, torch.arange(length), isa)
    lengths = torch.tensor([length], dtype=torch.int32)
    starts = torch.tensor([0, query.shape[0]], dtype=torch.int32)
    made = {} if made is None else made
    about = (*query.shape, heads, query.dtype)
    if about not in made:
        made[about] = ops.cpu_attn_get_scheduler_metadata(
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
        block_table=torch.arange(len(keys), dtype=torch.int32)[None],
        softcap=0.0,
        scheduler_metadata=made[about],
        s_aux=None,
    )
