"""What a forward's attention needs to know, made once for all layers: which keys each request may see, and where they lie."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.config import VllmConfig
from vllm.v1.attention.backend import AttentionMetadata, AttentionMetadataBuilder, CommonAttentionMetadata

from ..attention import AttentionPlan
from .causal_kernel import has_causal_kernel
from .kv_cache import HSASpec
from .listener import Row, rows_of
from .reach import free_types
from .two_parts import Strips, TwoParts
from .whole_blocks import BlocksAhead, WholeBlocks


_UNEVEN = 1.5  # rows attend together if the longest has at most so many times the keys of the shortest
_FEW = 256  # keys; or so many more
_RUN = 64  # queries, of which nothing is hidden or faded: as many or more go to vLLM's kernel
_QUERIES = 128  # that attend together: with more, keys that few of them see cost more than what is gathered less often
_TOGETHER = (
    512  # queries, if there are keys that each of them sees unfaded: only for the others they are cut into strips
)
_FREE = 16  # such keys: with fewer, it does not pay to look at them alone
_STRIP = 32  # queries
_LIMITED = 256  # keys that are hidden or fade: with more, a strip has `_QUERIES`


@dataclass
class Group:
    """Queries that attend together.

    Legend: B requests, Q queries of each, K keys of each, Hkv key/value heads.

    Attributes:
        queries: (B·Q,) int64, or a slice: where the queries stand among the tokens of the forward.
        places: (B, Hkv, K) int64, where the keys stand in the cache, as rows of `key_rows`.
        plan: What queries and keys are. None: for vLLM's kernel, each query sees all keys up to its own, none faded; B = 1.
        queries_each: Q.
        blocks: Where the keys lie instead of `places`, if they are copied by blocks; Q = 1.
        parts: Where they lie instead, if each query sees some of them unfaded; B = 1.
        made: What vLLM's kernel plans for a layer, for those like it.
    """

    queries: torch.Tensor | slice
    places: torch.Tensor
    plan: AttentionPlan | None
    queries_each: int
    blocks: WholeBlocks | None = None
    parts: TwoParts | None = None
    made: dict[tuple[object, ...], torch.Tensor] = field(default_factory=dict)


@dataclass
class HSAMetadata(AttentionMetadata):
    """Of one forward.

    Attributes:
        num_actual_tokens: T, how many tokens it has, without padding.
        new_places: (Hkv·T,) int64, where the tokens' keys go, as rows of `key_rows`.
        groups: Together, all queries. Empty: a dry run.
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
        self, kv_cache_spec: HSASpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._heads, self._block_size = kv_cache_spec.num_kv_heads, kv_cache_spec.block_size
        self._token_bytes = kv_cache_spec.page_size_bytes // kv_cache_spec.block_size
        self._rows = rows_of(vllm_config)
        self._rows.check(kv_cache_spec.rules)
        self._has_kernel = has_causal_kernel(device, kv_cache_spec.head_size)
        self._kept: list[WholeBlocks] = []  # of the last step

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> HSAMetadata:
        """Return the metadata of a forward.

        Args:
            common_prefix_len: Of no use.
            common_attn_metadata: What vLLM says of the forward.
            fast_build: Of no use.

        Raises:
            MissedRequest: If a request's types are not known.
        """
        common = common_attn_metadata
        new = common.slot_mapping[: common.num_actual_tokens].to(torch.int64)
        if not len(new) or new[0] < 0:  # a dry run: its tokens are nobody's, and have no place in the cache
            return HSAMetadata(0, new[:0], [])
        starts = common.query_start_loc_cpu.tolist()
        lengths = common.seq_lens.tolist()
        blocks: NDArray[Any] = common.block_table_tensor.cpu().numpy()
        single: list[_Piece] = []
        whole: list[_Whole] = []
        groups: list[Group] = []
        for index in range(common.num_reqs):
            start, stop = starts[index], starts[index + 1]
            if stop == start:
                continue
            row = self._rows.get(index, lengths[index])
            if stop - start == 1 and self.device.type == "cpu":
                ahead = row.ahead(lengths[index] - 1, blocks[index], self._block_size)
                if ahead is not None:
                    whole.append(_Whole(start, lengths[index] - 1, ahead))
                    continue
            pieces = _pieces(row, start, stop - start, lengths[index], self._has_kernel)
            for piece in pieces:
                piece.blocks = blocks[index]
                if piece.is_plain:
                    places = self._places(self._slots(piece.blocks, piece.positions)[None])
                    groups.append(Group(slice(piece.start, piece.stop), places, None, len(piece)))
                elif len(piece) == 1:
                    single.append(piece)
                else:
                    groups += self._groups_of(piece)
        groups += [self._group(together) for together in _alike(single, lambda piece: len(piece.positions))]
        groups += self._wholes(whole)
        if self._heads > 1:
            new = self._places(new.cpu().numpy()).view(-1)
        return HSAMetadata(common.num_actual_tokens, new, groups)

    def _slots(self, blocks: NDArray[Any], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where tokens of a request lie, given its block table."""
        return blocks[positions // self._block_size].astype(np.int64) * self._block_size + positions % self._block_size

    def _tensor(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device)

    def _places(self, slots: NDArray[np.int64]) -> torch.Tensor:
        """Return, for slots (…, K), the rows (…, Hkv, K) of `key_rows`."""
        block, inner = np.divmod(slots[..., None, :], self._block_size)
        heads = np.arange(self._heads)[:, None]
        return self._tensor((block * self._heads + heads) * self._block_size + inner)

    def _groups_of(self, piece: "_Piece") -> list[Group]:
        """Return the groups of a piece of several queries."""
        is_free = free_types(self._rows.rules)[piece.types]
        is_free[-len(piece) :] = False  # a query does not see those after it
        if self.device.type != "cpu" or np.count_nonzero(is_free) < _FREE:
            return [self._group([part]) for part in piece.cut(_QUERIES)]
        free = self._slots(piece.blocks, piece.positions[is_free])
        limited = piece.only(np.flatnonzero(~is_free))
        number = len(piece.positions) - len(free) - len(piece)
        strips, start = [], 0
        for _, together in groupby(limited.cut(_STRIP if number <= _LIMITED else _QUERIES), key=len):
            equal = list(together)
            strips.append(Strips(start, *self._joined(equal)))
            start += sum(map(len, equal))
        parts = TwoParts(self._places(free[None]), strips)
        return [Group(slice(piece.start, piece.stop), parts.free, strips[0].plan, len(piece), parts=parts)]

    def _group(self, pieces: "Sequence[_Piece]") -> Group:
        """Join pieces with as many queries each."""
        queries: torch.Tensor | slice = slice(pieces[0].start, pieces[0].stop)
        if len(pieces) > 1:
            queries = self._tensor(np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces]))
        places, plan = self._joined(pieces)
        return Group(queries, places, plan, len(pieces[0]))

    def _wholes(self, requests: "list[_Whole]") -> list[Group]:
        """Join single queries whose keys are copied by blocks."""
        groups, used = [], []
        for together in _alike(requests, lambda one: len(one.ahead.blocks) * self._block_size):
            together.sort(key=lambda one: one.place)
            first, number = together[0].place, len(together)
            queries: torch.Tensor | slice = slice(first, first + number)
            if together[-1].place != first + number - 1:
                queries = self._tensor(np.array([one.place for one in together]))
            ahead = [one.ahead for one in together]
            blocks = next((kept for kept in self._kept if kept.fits(ahead)), None)
            if blocks is None:
                most = max(len(one.blocks) for one in ahead)
                blocks = WholeBlocks(number, most, self._rows.rules, self._heads, self._block_size, self._token_bytes)
            else:
                self._kept.remove(blocks)
            blocks.update(ahead, [one.position for one in together])
            used.append(blocks)
            groups.append(Group(queries, blocks.places, None, 1, blocks))
        self._kept = used
        return groups

    def _joined(self, pieces: "Sequence[_Piece]") -> tuple[torch.Tensor, AttentionPlan]:
        """Return where the keys of pieces with as many queries each stand, (B, Hkv, K), and their plan."""
        is_real = _is_real(pieces)
        slots = np.repeat(
            [self._slots(piece.blocks, piece.positions[-1:]) for piece in pieces], is_real.shape[1], axis=1
        )
        slots[is_real] = np.concatenate([self._slots(piece.blocks, piece.positions) for piece in pieces])
        return self._places(slots), self._plan(pieces)

    def _plan(self, pieces: "Sequence[_Piece]") -> AttentionPlan:
        """Return a plan whose rows of keys end together; what a shorter one lacks is padding."""
        is_real = _is_real(pieces)
        return AttentionPlan(
            self._tensor(_rows(is_real, [piece.types for piece in pieces])),
            self._tensor(is_real.astype(np.int64)),
            self._tensor(_rows(is_real, [piece.positions for piece in pieces])),
            len(pieces[0]),
            has_gaps=any(len(piece.positions) != piece.positions[-1] + 1 for piece in pieces),
            has_padding=not is_real.all(),
            has_clean_padding=True,
            is_packed=False,
            turn_ids=None
            if pieces[0].turns is None
            else self._tensor(_rows(is_real, [piece.turns for piece in pieces])),
        )


def _is_real(pieces: "Sequence[_Piece]") -> NDArray[np.bool_]:
    """Return (B, K), which keys of pieces are none of the padding."""
    numbers = np.array([len(piece.positions) for piece in pieces])
    width = int(numbers.max())
    return np.arange(width) >= width - numbers[:, None]


def _rows(is_real: NDArray[np.bool_], values: Any) -> NDArray[np.int64]:
    """Return values of pieces, one after the other, as rows with zeros at their beginning."""
    rows = np.zeros(is_real.shape, np.int64)
    rows[is_real] = np.concatenate(values)
    return rows


@dataclass
class _Piece:
    """Consecutive queries of a request, and the keys that they may see.

    Attributes:
        start: Where the first query stands among the tokens of the forward.
        stop: After the last.
        positions: (K,) of the keys, ascending; the last are the queries' own.
        types: (K,) of the keys.
        last: (K,) of the keys, the last position that may see each.
        turns: (K,) of the keys; None: the rules have no turns.
        blocks: The request's block table.
        is_plain: Whether it is for vLLM's kernel.
    """

    start: int
    stop: int
    positions: NDArray[np.int64]
    types: NDArray[np.uint8]
    last: NDArray[np.int64]
    turns: NDArray[np.int64] | None = None
    blocks: NDArray[Any] = field(default_factory=lambda: np.empty(0, np.int64))
    is_plain: bool = False

    def __len__(self) -> int:
        return self.stop - self.start

    def only(self, kept: NDArray[np.int64]) -> "_Piece":
        """Return it with some of the keys."""
        turns = None if self.turns is None else self.turns[kept]
        return replace(self, positions=self.positions[kept], types=self.types[kept], last=self.last[kept], turns=turns)

    def cut(self, number: int) -> "list[_Piece]":
        """Cut it into so many queries each, the last one with what is left, and the keys that they may see."""
        first = int(self.positions[-1]) + 1 - len(self)
        parts = []
        for start in range(0, len(self), number):
            stop = min(start + number, len(self))
            is_seen = (self.last >= first + start) & (self.positions < first + stop)
            part = self.only(np.flatnonzero(is_seen))
            part.start, part.stop = self.start + start, self.start + stop
            parts.append(part)
        return parts


@dataclass
class _Whole:
    """A single query whose keys are copied by blocks.

    Attributes:
        place: Where it stands among the tokens of the forward.
        position: In its request.
        ahead: What it sees.
    """

    place: int
    position: int
    ahead: BlocksAhead


_Q = TypeVar("_Q", _Piece, _Whole)


def _pieces(row: Row, place: int, number: int, length: int, has_kernel: bool) -> list[_Piece]:
    """Return a request's queries in this forward.

    Args:
        row: The request.
        place: Where its first query stands among the tokens of the forward.
        number: How many it has.
        length: Of its tokens up to the last query.
        has_kernel: Whether vLLM's kernel can take what is plain.
    """
    first = length - number
    tokens = row.tokens
    pieces = []
    for begin, end in tokens.pieces(first, length):
        types = tokens.types_at(begin)
        middle = _plain_until(row, types, begin, end) if has_kernel and end - begin >= _RUN else begin
        for start, stop in [(begin, middle)] * (middle > begin) + _cut(middle, end):
            positions = row.visible(start, stop)
            turns = None if tokens.turns is None else tokens.turns[positions]
            piece = _Piece(
                place + start - first, place + stop - first, positions, types[positions], tokens.last[positions], turns
            )
            piece.is_plain = stop <= middle
            pieces.append(piece)
    return pieces


def _plain_until(row: Row, types: NDArray[np.uint8], start: int, stop: int) -> int:
    """Return up to where, of queries [start, stop), each sees all keys in sight of the first, and none of them fades."""
    is_free = free_types(row.tokens.rules)
    if not is_free[types[row.visible(start, start)]].all():
        return start
    limited = np.flatnonzero(~is_free[types[start:stop]])
    until = start + int(limited[0]) if len(limited) else stop
    return until if until - start >= _RUN else start


def _cut(start: int, stop: int) -> list[tuple[int, int]]:
    """Cut queries into those that are looked at together."""
    return [(begin, min(begin + _TOGETHER, stop)) for begin in range(start, stop, _TOGETHER)]


def _alike(queries: list[_Q], number: Callable[[_Q], int]) -> list[list[_Q]]:
    """Sort single queries into groups of about as many keys each: what is padded costs time."""
    if len(queries) < 2:
        return [queries] * len(queries)
    groups: list[list[_Q]] = []
    limit = -1.0
    for query in sorted(queries, key=number):
        own = number(query)
        if own > limit:
            limit = max(_UNEVEN * own, own + _FEW)
            groups.append([])
        groups[-1].append(query)
    return groups
