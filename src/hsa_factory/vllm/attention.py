"""Attention with HSA in vLLM: writes keys into the paged cache, gathers those in sight, and runs the product's attention."""

from typing import Any, ClassVar

import torch
from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionType, MultipleOf
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheLayout

from ..attention.api import run_attention
from ..attention.layer_rules import LayerRules
from .causal_kernel import causal_attention
from .kept_memory import copied
from .kv_cache import HSASpec
from .metadata import HSAMetadata, HSAMetadataBuilder, key_rows
from .whole_blocks import WholeBlocks


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

    @staticmethod
    def get_impl_cls() -> type["HSAImpl"]:
        """Return what attends."""
        return HSAImpl

    @staticmethod
    def get_builder_cls() -> type[HSAMetadataBuilder]:
        """Return what prepares a forward."""
        return HSAMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """Return any."""
        return [MultipleOf(1)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Return the one that `key_rows` reads."""
        return (KVCacheLayout.LBHNC,)

    @classmethod
    def supports_sliding_window(cls) -> bool:
        """Return True: it is part of a layer's rules."""
        return True

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Let the blocks of a layer be given back by the rules of all."""
        return HSASpec.like(spec, cls.rules)


class HSAImpl(AttentionImpl[HSAMetadata]):
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
        attn_metadata: HSAMetadata | None,
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
            attn_metadata: Of the forward; None, or without groups: vLLM warms up.
            output: (T, H, D), written to.
            output_scale: Refused.
            output_block_scale: Refused.

        Returns:
            `output`.
        """
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("HSA's attention gives no quantized output: switch that fusion off.")
        if attn_metadata is None or not attn_metadata.groups:
            return output.zero_()

        number, size = attn_metadata.num_actual_tokens, self.head_size
        rows = key_rows(kv_cache)
        for new, own in ((key, rows[:, :size]), (value, rows[:, size:])):
            own.index_copy_(0, attn_metadata.new_places, new[:number].transpose(0, 1).reshape(-1, size).to(rows.dtype))
        for group in attn_metadata.groups:
            if group.blocks is not None:
                self._by_blocks(query, rows, group.queries, group.blocks, output)
                continue
            if group.parts is not None:
                group.parts.attend(query[group.queries], rows, self.rules, self.scale, output[group.queries])
                continue
            asked, batch, length = query[group.queries], group.places.shape[0], group.places.shape[-1]
            if group.plan is None:
                keys, values = key[group.queries], value[group.queries]
                if length > len(asked):
                    held = copied(rows, group.places).view(-1, length, 2 * size).transpose(0, 1)
                    keys, values = held[..., :size], held[..., size:]
                causal_attention(asked, keys, values, self.scale, output[group.queries], group.made)
                continue
            held = rows.index_select(0, group.places.view(-1)).view(*group.places.shape, 2 * size)
            keys, values = held[..., :size], held[..., size:]
            asked = asked.view(batch, group.queries_each, *query.shape[1:]).transpose(1, 2)
            answer, _ = run_attention(asked, keys, values, group.plan, self.rules, scale=self.scale)
            output[group.queries] = answer.transpose(1, 2).reshape(-1, *output.shape[1:])
        return output

    def _by_blocks(
        self,
        query: torch.Tensor,
        rows: torch.Tensor,
        queries: torch.Tensor | slice,
        blocks: WholeBlocks,
        output: torch.Tensor,
    ) -> None:
        asked = query[queries]
        if isinstance(queries, slice):
            blocks.attend(asked, rows, self.rules, self.scale, output[queries])
            return
        answer = torch.empty_like(asked)
        blocks.attend(asked, rows, self.rules, self.scale, answer)
        output[queries] = answer
