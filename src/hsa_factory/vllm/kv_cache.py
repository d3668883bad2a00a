"""The KV cache of a model with HSA: blocks that nobody can see again are given back, and need not be found again."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from vllm.config import VllmConfig
from vllm.utils.math_utils import cdiv
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHashList, KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec, KVCacheSpec, SlidingWindowSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from ..attention.layer_rules import UNLIMITED, LayerRules
from .block_hashes import TypedBlockHashes
from .counts import BlockCounts
from .reach import last_of_blocks, longest_hit, most_blocks_held, reach_of_new
from .tokens import TokenTypes


@dataclass(frozen=True, kw_only=True)
class HSASpec(FullAttentionSpec):
    """The cache of a layer with HSA.

    Attributes:
        rules: What holds in the layers of the model, each once: all layers share their blocks.
    """

    rules: tuple[LayerRules, ...] = ()

    @classmethod
    def like(cls, spec: AttentionSpec, rules: tuple[LayerRules, ...]) -> "HSASpec":
        """Return the spec of a layer that has `spec` without HSA; the model's sliding window is part of the rules."""
        if not isinstance(spec, (FullAttentionSpec, SlidingWindowSpec)):
            raise ValueError(f"HSA in vLLM serves layers with full or sliding attention, not {type(spec).__name__}.")
        return cls(
            block_size=spec.block_size,
            num_kv_heads=spec.num_kv_heads,
            head_size=spec.head_size,
            head_size_v=spec.head_size_v,
            dtype=spec.dtype,
            kv_quant_mode=spec.kv_quant_mode,
            page_size_padded=spec.page_size_padded,
            max_tp_shards=spec.max_tp_shards,
            rules=rules,
        )

    @classmethod
    def merge(cls, specs: list[Self]) -> Self:
        """Return the spec of layers that share their blocks."""
        assert all(spec.rules == specs[0].rules for spec in specs), "the rules are those of the whole model"
        return replace(super().merge(specs), rules=specs[0].rules)

    def max_memory_usage_bytes(self, vllm_config: VllmConfig) -> int:
        """Return what the start must find room for: one step. Whether a request fits is known when its types are."""
        step = vllm_config.scheduler_config.max_num_batched_tokens
        return (cdiv(min(vllm_config.model_config.max_model_len, step), self.block_size) + 1) * self.page_size_bytes


class HSAManager(FullAttentionManager):
    """Gives blocks back by the types of their tokens.

    Attributes:
        tokens: Those of each request, by its id; the scheduler notes them, and they live as long as the request.
        step_tokens: The most tokens of a request in one step.
        freed: Blocks given back since the start.
    """

    def __init__(self, kv_cache_spec: HSASpec, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self.rules = kv_cache_spec.rules
        self.tokens: weakref.WeakValueDictionary[str, TokenTypes] = weakref.WeakValueDictionary()
        self.step_tokens = 1
        self.freed = 0
        self._is_gone: dict[str, NDArray[np.bool_]] = {}  # of each block of a request
        self._looked_at: dict[str, tuple[tuple[int, int], int]] = {}  # what was known, and until when no block dies
        self._least_reach = 0 if any(layer.has_turns for layer in self.rules) else min(reach_of_new(self.rules))

    def counts(self) -> BlockCounts:
        """Return how many blocks are held now, would be without HSA, and were given back."""
        plain = sum(len(blocks) for blocks in self.req_to_blocks.values())
        gone = sum(int(is_gone.sum()) for is_gone in self._is_gone.values())
        return BlockCounts(plain - gone, plain, self.freed)

    def most_blocks(self, tokens: TokenTypes) -> int:
        """Return the most blocks that a request holds at once while what is known of it is read."""
        return most_blocks_held(_held_last(tokens), len(tokens), self.step_tokens, self.block_size)

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        num_local_computed_tokens: int,
        num_tokens_main_model: int,
        apply_admission_cap: bool = False,
        prefill_end: int = 0,
    ) -> int:
        """Return how many blocks a request needs; to be admitted, as many as it will hold at once."""
        needed = super().get_num_blocks_to_allocate(
            request_id,
            num_tokens,
            new_computed_blocks,
            total_computed_tokens,
            num_local_computed_tokens,
            num_tokens_main_model,
            apply_admission_cap,
            prefill_end,
        )
        tokens = self.tokens.get(request_id)
        if not apply_admission_cap or tokens is None:
            return needed
        shared = sum(block.ref_cnt > 0 and not block.is_null for block in new_computed_blocks)
        return min(needed, max(self.most_blocks(tokens) - shared, 0))

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """Give back a request's blocks whose keys no query from `processed_computed_tokens` on can see."""
        tokens, blocks = self.tokens.get(request_id), self.req_to_blocks.get(request_id)
        if tokens is None or not blocks:
            return
        tokens.read()
        written = processed_computed_tokens // self.block_size
        full = min(len(blocks), written, tokens.held_from // self.block_size)
        state = (len(tokens.events), full if full < written else -1)
        known, until = self._looked_at.get(request_id, (None, 0))
        if known == state and processed_computed_tokens <= until:
            return
        is_gone = self._gone(request_id, blocks)
        last = last_of_blocks(tokens.last[: full * self.block_size], self.block_size)
        is_held = ~is_gone[:full]
        is_dying = is_held & (last < processed_computed_tokens)
        next_block = (full + 1) * self.block_size - 1 + self._least_reach
        self._looked_at[request_id] = state, int(last[is_held & ~is_dying].min(initial=next_block))
        dying = np.flatnonzero(is_dying).tolist()
        if not dying:
            return
        freed = [blocks[index] for index in reversed(dying)]
        for index in dying:
            blocks[index] = self._null_block
        is_gone[dying] = True
        self.freed += len(freed)
        self.block_pool.free_blocks(freed)

    def _gone(self, request_id: str, blocks: Sequence[KVCacheBlock]) -> NDArray[np.bool_]:
        """Return, of each of a request's blocks, whether it was given back or never needed."""
        known = self._is_gone.get(request_id)
        if known is None:
            known = np.array([block.is_null for block in blocks], bool)
        elif len(known) < len(blocks):
            known = np.concatenate([known, np.zeros(len(blocks) - len(known), bool)])
        self._is_gone[request_id] = known
        return known

    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        """Forget a request and return its blocks."""
        self._is_gone.pop(request_id, None)
        self._looked_at.pop(request_id, None)
        return super().pop_blocks_for_free(request_id)

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: BlockHashList,
        max_length: int,
        kv_cache_group_ids: list[int],
        block_pool: BlockPool,
        kv_cache_spec: KVCacheSpec,
        drop_eagle_block: bool,
        alignment_tokens: int,
        dcp_world_size: int = 1,
        pcp_world_size: int = 1,
    ) -> tuple[tuple[list[KVCacheBlock], ...], int]:
        """Find the longest prefix of which every block is cached or out of sight.

        Returns:
            Its blocks, the null block where none is needed, and its length in tokens.
        """
        assert isinstance(block_hashes, TypedBlockHashes), "the scheduler sets it"
        size = kv_cache_spec.block_size
        limit = min(max_length // size, len(block_hashes))
        found = [block_pool.get_cached_block(block_hashes[index], kv_cache_group_ids) for index in range(limit)]
        last = last_of_blocks(_held_last(block_hashes.tokens)[: limit * size], size)
        hit = longest_hit(np.array([blocks is not None for blocks in found], bool), last, size, limit)
        is_needed = last[:hit] >= hit * size
        groups = tuple(
            [
                blocks[group] if needed and blocks is not None else block_pool.null_block
                for blocks, needed in zip(found, is_needed)
            ]
            for group in range(len(kv_cache_group_ids))
        )
        return groups, hit * size


def _held_last(tokens: TokenTypes) -> NDArray[np.int64]:
    """Return the last position that may see each token; without end where its type may change yet."""
    tokens.read()
    if tokens.held_from >= len(tokens):
        return tokens.last
    last = tokens.last.copy()
    last[tokens.held_from :] = UNLIMITED
    return last


def register_kv_cache() -> None:
    """Let vLLM know the spec and its manager; harmless to repeat."""
    KVCacheSpecRegistry._ensure_registered()  # once one is registered, vLLM registers its own no more
    KVCacheSpecRegistry.register(HSASpec, HSAManager, uniform_type_base_spec=FullAttentionSpec)
