"""Attention with HSA in vLLM: what is the same on every machine; the rest is in `cpu/` and `paged/`."""

from typing import Any, ClassVar

import torch
from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionType
from vllm.v1.kv_cache_interface import AttentionSpec

from ..attention.layer_rules import LayerRules
from .kv_cache import HSASpec


class HSABackend(AttentionBackend):
    """The attention of layers with HSA. A model gives it to its layers itself; other models know nothing of it.

    Attributes:
        rules: What holds in the layers of the model, each once.
    """

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.bfloat16, torch.float16]
    forward_includes_kv_cache_update = True
    rules: ClassVar[tuple[LayerRules, ...]] = ()

    @classmethod
    def of(cls, rules: tuple[LayerRules, ...]) -> type["HSABackend"]:
        """Return the backend of a model with these rules."""
        return type(cls.__name__, (cls,), {"rules": rules})

    @staticmethod
    def get_name() -> str:
        """Return a name that vLLM knows."""
        return "CUSTOM"

    @classmethod
    def supports_sliding_window(cls) -> bool:
        """Return True: it is part of a layer's rules."""
        return True

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Let the blocks of a layer be given back by the rules of all."""
        return HSASpec.like(spec, cls.rules)


class HSAImpl(AttentionImpl[Any]):
    """The attention of one layer.

    Args:
        rules: What holds in it.
        num_heads: H.
        head_size: D.
        scale: Factor of q·k.
        num_kv_heads: Hkv.
        kv_cache_dtype: Of the cache.
    """

    attn_type = AttentionType.DECODER

    def __init__(
        self,
        rules: LayerRules,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        kv_cache_dtype: str,
    ) -> None:
        self.rules = rules
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads, self.kv_cache_dtype = num_kv_heads, kv_cache_dtype

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            layer: Of vLLM.
            query: (T, H, D).
            key: (T, Hkv, D).
            value: (T, Hkv, D).
            kv_cache: (blocks, Hkv, block size, 2·D).
            attn_metadata: Of the forward; None, or its own `forward` is: vLLM warms up.
            output: (T, H, D), written to.
            output_scale: Refused.
            output_block_scale: Refused.

        Returns:
            `output`.
        """
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("HSA's attention gives no quantized output: switch that fusion off.")
        if attn_metadata is None or attn_metadata.forward is None:
            return output.zero_()
        self.attend(query, key, value, kv_cache, attn_metadata, output)
        return output

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
    ) -> None:
        """Write keys and values into the cache, and then what the queries see; all as in `forward`."""
        raise NotImplementedError
