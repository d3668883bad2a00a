"""Attention with HSA on a GPU: vLLM's paged cache, written and read by kernels of ours."""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionMetadata,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheLayout

from ..attention import HSABackend, HSAImpl
from ..listener import MissedRequest, rows_of
from ..tokens import TokenTypes
from .attention import Forward, attend, queries_of_a_block, works_of, write
from .pages import Piece, pieces_of
from .type_table import TypeTable


class PagedHSABackend(HSABackend):
    """The attention of layers with HSA on a GPU."""

    @staticmethod
    def get_impl_cls() -> type["PagedHSAImpl"]:
        """Return what attends."""
        return PagedHSAImpl

    @staticmethod
    def get_builder_cls() -> type["PagedMetadataBuilder"]:
        """Return what prepares a forward."""
        return PagedMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """Return those of which the kernel reads whole ones at once."""
        return [16, 32, 64, 128]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Return the one in which a token's heads lie side by side."""
        return (KVCacheLayout.LBNHC,)


@dataclass
class PagedMetadata(AttentionMetadata):
    """Of one forward.

    Attributes:
        num_actual_tokens: T, without padding.
        new_slots: (T,) int64, where the tokens' keys go; below 0: nowhere, in a dry run.
        forward: What the kernel is told.
    """

    num_actual_tokens: int
    new_slots: torch.Tensor
    forward: Forward


class PagedMetadataBuilder(AttentionMetadataBuilder[PagedMetadata]):
    """Makes the metadata of each forward from what is known of the requests in the worker's batch.

    Args:
        kv_cache_spec: Of the layers.
        layer_names: The layers.
        vllm_config: The engine's.
        device: Of the cache.
    """

    def __init__(
        self, kv_cache_spec: AttentionSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._page_size = kv_cache_spec.block_size
        heads = vllm_config.model_config.get_num_attention_heads(vllm_config.parallel_config)
        self._most = queries_of_a_block(heads // kv_cache_spec.num_kv_heads, kv_cache_spec.dtype)
        self._rows = rows_of(vllm_config)
        if not vllm_config.use_v2_model_runner:  # there the model's state tells of requests, and no logits processor
            self._rows.check(kv_cache_spec.rules)
        pages = -(-vllm_config.model_config.max_model_len // self._page_size)
        self._table = TypeTable(pages * self._page_size, device, any(rules.has_turns for rules in self._rows.rules))

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> PagedMetadata:
        """Return the metadata of a forward.

        Args:
            common_prefix_len: Of no use.
            common_attn_metadata: What vLLM says of the forward.
            fast_build: Of no use.

        Raises:
            MissedRequest: If a request's types are not known.
        """
        common = common_attn_metadata
        pieces = self._pieces(common)
        rows = self._table.rows_for([(piece.tokens, piece.start) for piece in pieces])
        told = works_of(pieces, rows, self._page_size, self._most, self.device)
        pages = common.block_table_tensor
        forward = Forward(*told, pages, self._table.types, self._table.turns, self._page_size)
        number = common.num_actual_tokens
        return PagedMetadata(number, common.slot_mapping[:number], forward)

    def _pieces(self, common: CommonAttentionMetadata) -> list[Piece]:
        starts = common.query_start_loc_cpu.tolist()
        known = common.seq_lens_cpu_upper_bound  # exact: there is no speculative decoding
        lengths = (common.seq_lens if known is None else known).tolist()
        pieces: list[Piece] = []
        for index in range(common.num_reqs):
            number = starts[index + 1] - starts[index]
            if number:
                length = max(lengths[index], number)
                pieces += pieces_of(index, starts[index], number, length, self._tokens(index, length, common))
        return pieces

    def _tokens(self, index: int, length: int, common: CommonAttentionMetadata) -> TokenTypes | None:
        """Return what is known of a request's tokens; None: a dry run, whose tokens have no place in the cache."""
        try:
            return self._rows.get(index, length).tokens
        except MissedRequest:
            if bool((common.slot_mapping[: common.num_actual_tokens] < 0).all()):  # last, as it waits for the device
                return None
            raise


class PagedHSAImpl(HSAImpl):
    """The attention of one layer on a GPU."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: PagedMetadata,
        output: torch.Tensor,
    ) -> None:
        """Write keys and values into the cache, and then what the queries see; all as in `forward`."""
        number = attn_metadata.num_actual_tokens
        cache = kv_cache.transpose(1, 2).view(-1, self.num_kv_heads, 2 * self.head_size)
        write(key[:number], value[:number], cache, attn_metadata.new_slots)
        attend(query[:number], cache, attn_metadata.forward, self.rules, self.scale, output[:number])
