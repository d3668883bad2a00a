"""Attention with HSA on a CPU: vLLM's paged cache, written and read by kernels of ours."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.config import VllmConfig
from vllm.v1.attention.backend import AttentionMetadata, AttentionMetadataBuilder, CommonAttentionMetadata, MultipleOf
from vllm.v1.kv_cache_interface import KVCacheLayout

from ..attention import HSABackend, HSAImpl
from ..kv_cache import HSASpec
from ..listener import Row, rows_of
from .attention import Forward, Piece, kind_of, sight_of
from .kernels import kernels_for
from .keys import KeysByType


class CPUHSABackend(HSABackend):
    """The attention of layers with HSA on a CPU."""

    @staticmethod
    def get_impl_cls() -> type["CPUHSAImpl"]:
        """Return what attends."""
        return CPUHSAImpl

    @staticmethod
    def get_builder_cls() -> type["CPUMetadataBuilder"]:
        """Return what prepares a forward."""
        return CPUMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """Return any."""
        return [MultipleOf(1)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Return the one in which keys of a head follow each other."""
        return (KVCacheLayout.LBHNC,)


@dataclass
class CPUMetadata(AttentionMetadata):
    """Of one forward.

    Attributes:
        forward: Its tokens. None: a dry run.
    """

    forward: Forward | None


@dataclass
class _Kept:
    """Keys of a request, as long as no type of them changes.

    Attributes:
        keys: The keys.
        events: How many changes of types there were.
    """

    keys: KeysByType
    events: int


class CPUMetadataBuilder(AttentionMetadataBuilder[CPUMetadata]):
    """Makes the metadata of each forward, once for all layers, from what `TypeListener` knows of the requests.

    Args:
        kv_cache_spec: Of the layers.
        layer_names: The layers.
        vllm_config: The engine's.
        device: Of the cache.
    """

    def __init__(
        self, kv_cache_spec: HSASpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._kv_heads, self._block_size = kv_cache_spec.num_kv_heads, kv_cache_spec.block_size
        self._size = kv_cache_spec.head_size
        self._group = vllm_config.model_config.get_num_attention_heads(vllm_config.parallel_config) // self._kv_heads
        self._rows = rows_of(vllm_config)
        self._rows.check(kv_cache_spec.rules)
        kernels_for(self._size, kind_of(kv_cache_spec.dtype))  # now, as it takes seconds
        self._keys().grow(np.zeros(1, np.uint8), 1, np.zeros(1, np.int32))

    def _keys(self) -> KeysByType:
        return KeysByType(self._kv_heads, self._block_size)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> CPUMetadata:
        """Return the metadata of a forward.

        Args:
            common_prefix_len: Of no use.
            common_attn_metadata: What vLLM says of the forward.
            fast_build: Of no use.

        Raises:
            MissedRequest: If a request's types are not known.
        """
        common = common_attn_metadata
        slots: NDArray[np.int64] = common.slot_mapping.numpy()[: common.num_actual_tokens]
        if not len(slots) or slots[0] < 0:  # a dry run: its tokens are nobody's, and have no place in the cache
            return CPUMetadata(None)
        starts, lengths = common.query_start_loc_cpu.tolist(), common.seq_lens.tolist()
        tables: NDArray[np.int32] = common.block_table_tensor.numpy()
        pieces: list[Piece] = []
        for index in range(common.num_reqs):
            start, number, length = starts[index], starts[index + 1] - starts[index], lengths[index]
            if number:
                row = self._rows.get(index, length)
                pieces += self._pieces(row, start, length - number, length, tables[index])
        return CPUMetadata(Forward(pieces, slots, self._group, self._kv_heads, self._size))

    def _pieces(self, row: Row, place: int, start: int, stop: int, table: NDArray[Any]) -> list[Piece]:
        """Return a request's queries [start, stop), of which the first stands at a place, cut where types change."""
        tokens, pieces = row.tokens, []
        for begin, end in tokens.pieces(start, stop):
            if tokens.events and tokens.events[-1].at > begin:  # these queries see types as they were
                types, keys = tokens.types_at(begin), self._keys()
            else:
                types, keys = tokens.known_types, self._kept(row)
            in_table = (
                -(-end // self._block_size) * self._block_size
            )  # for the tokens of a block once, if they are known
            keys.grow(types, min(in_table, len(types)), table)
            pieces.append(Piece(place + begin - start, begin, end, types, tokens.turns, keys))
        return pieces

    def _kept(self, row: Row) -> KeysByType:
        """Return the keys of a request from step to step, as long as no type of theirs changes."""
        events = len(row.tokens.events)
        if row.kept is None or row.kept.events != events:
            row.kept = _Kept(self._keys(), events)
        keys: KeysByType = row.kept.keys
        return keys


class CPUHSAImpl(HSAImpl):
    """The attention of one layer on a CPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sight = sight_of(self.rules, self.scale)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: CPUMetadata,
        output: torch.Tensor,
    ) -> None:
        """Write keys and values into the cache, and then what the queries see; all as in `forward`."""
        assert attn_metadata.forward is not None, "there is nothing to attend to in a dry run"
        attn_metadata.forward.attend(query, key, value, kv_cache, self._sight, output)
