"""Attention with HSA on a GPU: vLLM's paged cache, read by one fused kernel."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention.flex_attention import BlockMask
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionMetadata,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheLayout

from ...attention.layer_rules import LayerRules
from ..attention import HSABackend, HSAImpl
from ..listener import MissedRequest, rows_of
from ..tokens import TokenTypes
from .kernel import page_mask, paged_attention
from .mods import Layout, Mod, mods_of
from .pages import QUERIES, Piece, blocks_of, pieces_of
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
        """Return what the kernel multiplies at once."""
        return [MultipleOf(16)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Return the one in which the keys of a head are one row of tokens."""
        return (KVCacheLayout.LBNHC,)


@dataclass
class PagedMetadata(AttentionMetadata):
    """Of one forward.

    Legend: T tokens, N queries in blocks, P pages of the block with most.

    Attributes:
        num_actual_tokens: T, without padding.
        new_slots: (T,) int64, where the tokens' keys go; in a dry run the first of the page that no request has.
        layout: Where queries and keys are.
        queries: (N,) int64, which token stands at each place of the blocks.
        places: (T,) int64, at which place each token stands.
        number: (N / 16,) int32, pages of each block.
        pages: (N / 16, P) int32, where they lie.
    """

    num_actual_tokens: int
    new_slots: torch.Tensor
    layout: Layout
    queries: torch.Tensor
    places: torch.Tensor
    number: torch.Tensor
    pages: torch.Tensor
    _made: dict[LayerRules, tuple[BlockMask, Mod | None]] = field(default_factory=dict)

    def mask_and_score(self, rules: LayerRules) -> tuple[BlockMask, Mod | None]:
        """Return what the kernel takes, made once for all layers with these rules."""
        if rules not in self._made:
            mask_mod, score_mod = mods_of(self.layout, rules)
            size = self.layout.page_size
            mask = page_mask(self.number, self.pages, size, size * len(self.layout.logical), mask_mod)
            self._made[rules] = mask, score_mod
        return self._made[rules]


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
        self._rows = rows_of(vllm_config)
        if not vllm_config.use_v2_model_runner:  # there the model's state tells of requests, and no logits processor
            self._rows.check(kv_cache_spec.rules)
        pages = -(-vllm_config.model_config.max_model_len // self._page_size)
        self._table = TypeTable(pages * self._page_size, device, any(rules.has_turns for rules in self._rows.rules))
        self._logical = torch.zeros(0, dtype=torch.int32, device=device)

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
        blocks = blocks_of(pieces, self._page_size)
        table_rows = np.array(self._table.rows_for([(piece.tokens, piece.start) for piece in pieces]), np.int64)
        batch_rows = np.array([piece.row for piece in pieces], np.int64)[blocks.pieces]
        is_query = blocks.queries >= 0
        places = np.zeros(common.num_actual_tokens, np.int64)
        places[blocks.queries[is_query]] = np.flatnonzero(is_query)
        numbers = self._tensor(blocks.pages)
        pages = common.block_table_tensor[self._tensor(batch_rows)[:, None], numbers]
        layout = Layout(
            row=self._tensor(np.repeat(table_rows[blocks.pieces], QUERIES)),
            position=self._tensor(blocks.positions),
            logical=self._note(pages, numbers),
            page_size=self._page_size,
            types=self._table.types,
            turns=self._table.turns,
        )
        return PagedMetadata(
            num_actual_tokens=common.num_actual_tokens,
            new_slots=common.slot_mapping[: common.num_actual_tokens].to(torch.int64).clamp(min=0),
            layout=layout,
            queries=self._tensor(np.maximum(blocks.queries, 0)),
            places=self._tensor(places),
            number=self._tensor(blocks.number),
            pages=pages.to(torch.int32),
        )

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

    def _note(self, pages: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Note which number each page has within its request; a page that requests share has one in all of them."""
        if not len(self._logical):
            total = self.vllm_config.cache_config.num_gpu_blocks
            self._logical = torch.zeros(total, dtype=torch.int32, device=self.device)
        self._logical[pages.flatten().long()] = numbers.flatten().to(torch.int32)
        return self._logical

    def _tensor(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device)


class PagedHSAImpl(HSAImpl):
    """The attention of one layer on a GPU."""

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
            kv_cache: (pages, Hkv, page size, 2·D).
            attn_metadata: A `PagedMetadata`; None: vLLM warms up.
            output: (T, H, D), written to.
            output_scale: Refused.
            output_block_scale: Refused.

        Returns:
            `output`.
        """
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("HSA's attention gives no quantized output: switch that fusion off.")
        if attn_metadata is None:
            return output.zero_()
        number, size = attn_metadata.num_actual_tokens, self.head_size
        cache = kv_cache.transpose(1, 2).view(-1, self.num_kv_heads, 2 * size)
        new = torch.cat([key[:number], value[:number]], dim=-1)
        cache.index_copy_(0, attn_metadata.new_slots, new.to(cache.dtype))
        keys, values = cache.split(size, dim=-1)
        mask, score_mod = attn_metadata.mask_and_score(self.rules)
        answer = paged_attention(query[attn_metadata.queries], keys, values, mask, score_mod, self.scale)
        output[:number] = answer[attn_metadata.places]
        return output
