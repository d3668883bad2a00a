"""What a forward's attention needs to know, made once for all layers: which keys each request may see, and where they lie."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.config import VllmConfig
from vllm.v1.attention.backend import AttentionMetadata, AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.kv_cache_interface import AttentionSpec

from ..attention import AttentionPlan
from .listener import Row, rows_of


_UNEVEN = 1.5  # rows attend together if the longest has at most so many times the keys of the shortest
_FEW = 256  # keys; or so many more


@dataclass
class Group:
    """Queries that attend together.

    Legend: B requests, Q queries of each, K keys of each, Hkv key/value heads.

    Attributes:
        queries: (B·Q,) int64, where the queries stand among the tokens of the forward.
        places: (B, Hkv, K) int64, where the keys stand in the cache, as rows of `key_rows`.
        plan: What queries and keys are.
        queries_each: Q.
    """

    queries: torch.Tensor
    places: torch.Tensor
    plan: AttentionPlan
    queries_each: int


@dataclass
class HSAMetadata(AttentionMetadata):
    """Of one forward.

    Attributes:
        num_actual_tokens: T, how many tokens it has, without padding.
        new_places: (Hkv, T) int64, where the tokens' keys go, as rows of `key_rows`.
        groups: Together, all queries.
    """

    num_actual_tokens: int
    new_places: torch.Tensor
    groups: list[Group]


def key_rows(kv_cache: torch.Tensor) -> torch.Tensor:
    """View a layer's cache, (blocks, Hkv, block size, 2·D), as rows of a key and its value, (blocks·Hkv·block size, 2·D)."""
    return kv_cache.view(-1, kv_cache.shape[-1])


class HSAMetadataBuilder(AttentionMetadataBuilder[HSAMetadata]):
    """Makes the metadata of each forward from what `TypeListener` knows of the requests.

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
        self._heads, self._block_size = kv_cache_spec.num_kv_heads, kv_cache_spec.block_size
        self._rows = rows_of(vllm_config)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> HSAMetadata:
        """Return the metadata of a forward.

        Args:
            common_prefix_len: Of no use.
            common_attn_metadata: What vLLM says of the forward.
            fast_build: Of no use.
        """
        common = common_attn_metadata
        starts = common.query_start_loc_cpu.tolist()
        lengths = common.seq_lens.tolist()
        blocks: NDArray[Any] = common.block_table_tensor.cpu().numpy()
        new = common.slot_mapping[: common.num_actual_tokens].to(torch.int64)
        single: list[_Piece] = []
        groups: list[Group] = []
        for index in range(common.num_reqs):
            start, stop = starts[index], starts[index + 1]
            row = self._rows.get(index)
            if stop == start:
                continue
            pieces = _pieces(row, start, stop - start, lengths[index])
            for piece in pieces:
                piece.slots = self._slots(blocks[index], piece.positions)
                if len(piece) == 1:
                    single.append(piece)
                else:
                    groups.append(self._group([piece]))
        groups += [self._group(together) for together in _alike(single)]
        return HSAMetadata(common.num_actual_tokens, self._places(new), groups)

    def _slots(self, blocks: NDArray[Any], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where tokens of a request lie, given its block table."""
        return blocks[positions // self._block_size].astype(np.int64) * self._block_size + positions % self._block_size

    def _tensor(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device)

    def _places(self, slots: torch.Tensor) -> torch.Tensor:
        """Return, for slots (…, K), the rows (…, Hkv, K) of `key_rows`."""
        block, inner = slots // self._block_size, slots % self._block_size
        heads = torch.arange(self._heads, device=slots.device)[:, None]
        return (block.unsqueeze(-2) * self._heads + heads) * self._block_size + inner.unsqueeze(-2)

    def _group(self, pieces: "Sequence[_Piece]") -> Group:
        """Join pieces with as many queries each; rows of keys end together, and what a shorter one lacks is padding."""
        width = max(len(piece.positions) for piece in pieces)
        shape = (len(pieces), width)
        is_real = np.zeros(shape, np.int64)
        types, positions, slots, turns = (np.zeros(shape, np.int64) for _ in range(4))
        for row, piece in enumerate(pieces):
            first = width - len(piece.positions)
            is_real[row, first:], slots[row, :first] = 1, piece.slots[-1]
            types[row, first:], positions[row, first:], slots[row, first:] = piece.types, piece.positions, piece.slots
            if piece.turns is not None:
                turns[row, first:] = piece.turns
        has_padding = bool((is_real == 0).any())
        plan = AttentionPlan(
            self._tensor(types),
            self._tensor(is_real),
            self._tensor(positions),
            len(pieces[0]),
            has_gaps=any(len(piece.positions) != piece.positions[-1] + 1 for piece in pieces),
            has_padding=has_padding,
            has_clean_padding=True,
            is_packed=False,
            turn_ids=None if pieces[0].turns is None else self._tensor(turns),
        )
        queries = np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces])
        return Group(self._tensor(queries), self._places(self._tensor(slots)), plan, len(pieces[0]))


@dataclass
class _Piece:
    """Consecutive queries of a request, and the keys that they may see.

    Attributes:
        start: Where the first query stands among the tokens of the forward.
        stop: After the last.
        positions: (K,) of the keys, ascending; the last are the queries' own.
        types: (K,) of the keys.
        turns: (K,) of the keys; None: the rules have no turns.
        slots: (K,) where the keys lie.
    """

    start: int
    stop: int
    positions: NDArray[np.int64]
    types: NDArray[np.uint8]
    turns: NDArray[np.int64] | None = None
    slots: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return self.stop - self.start


def _pieces(row: Row | None, place: int, number: int, length: int) -> list[_Piece]:
    """Return a request's queries in this forward.

    Args:
        row: The request; None: a dry run.
        place: Where its first query stands among the tokens of the forward.
        number: How many it has.
        length: Of its tokens up to the last query.
    """
    first = length - number
    if row is None:
        return [_Piece(place, place + number, np.arange(length), np.zeros(length, np.uint8))]
    tokens = row.tokens
    tokens.read(length)
    pieces = []
    for start, stop in tokens.pieces(first, length):
        positions = row.visible(start, stop)
        types = tokens.types_at(start)[positions]
        turns = None if tokens.turns is None else tokens.turns[positions]
        pieces.append(_Piece(place + start - first, place + stop - first, positions, types, turns))
    return pieces


def _alike(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Sort pieces into groups of about as many keys each: what is padded costs time."""
    groups: list[list[_Piece]] = []
    for piece in sorted(pieces, key=lambda piece: len(piece.positions)):
        limit = 0.0
        if groups:
            shortest = len(groups[-1][0].positions)
            limit = max(_UNEVEN * shortest, shortest + _FEW)
        if len(piece.positions) <= limit:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups
