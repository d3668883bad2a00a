"""A plan seen document by document and block by block: what `blockwise` needs to know before it touches q, k, v."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from ..config import HSAConfig


NEAR_LIMIT = 256  # windows up to this many tokens are cheap to read as a strip of all keys
_BLOCK_BYTES = 4 * 2**20  # of one intermediate of a block: small enough to stay in a processor's cache
MAX_ROWS, _MIN_ROWS = 128, 16  # more rows: fewer, larger products, but a wider strip of which less is visible
_STEEP = 1.0  # decays above it get an exact bias: as head dimensions, large numbers that cancel would swallow q·k
_KEPT_BYTES = 32 * 2**20  # of biases, kept for the other layers and the backward pass


@dataclass(frozen=True)
class Block:
    """One block of consecutive queries of a document and the keys it can see.

    Attributes:
        start: Position of the first query in the document.
        rows: Number of queries.
        query_rows: Where they stand among the document's queries.
        near_rows: The strip of the document's keys that near keys are read from.
        far_start: First of the far keys in sight.
        far_stop: After the last of them.
        near_bias: (rows, strip columns) added to the strip's logits: −inf where a key is not near or not visible.
        far_bias: (rows, columns) added to the last of the far columns, or None if all of them are plainly visible.
    """

    start: int
    rows: int
    query_rows: slice
    near_rows: slice
    far_start: int
    far_stop: int
    near_bias: torch.Tensor | None
    far_bias: torch.Tensor | None

    @property
    def near_columns(self) -> int:
        """Width of the strip."""
        return self.near_rows.stop - self.near_rows.start

    @property
    def columns(self) -> int:
        """All columns of the block, the strip's first."""
        return self.near_columns + self.far_stop - self.far_start


class Document:
    """One document of one row of the batch: its far and near keys, and the blocks of its queries.

    Args:
        row: The row of the batch.
        index: Places of the document's tokens in the row, ascending.
        types: The `SemanticType` of each, (n,).
        first_query: Place from which on the row's tokens are queries too.
        rules: The rules that hold, windows narrowed to the model's own.

    Attributes:
        length: n, tokens of the document.
        first: Position in the document of its first query.
        far_index: Positions of the far keys, ascending.
        far_decay: Their decays, 0 where they are too steep for head dimensions and part of the blocks' `far_bias`.
        strip: Columns a block's strip may need; 0 without near keys.
    """

    def __init__(
        self, row: int, index: torch.Tensor, types: torch.Tensor, first_query: int, rules: "EffectiveRules"
    ) -> None:
        self.row = row
        self.length = len(index)
        first, last = int(index[0]), int(index[-1])
        self.places: slice | torch.Tensor = slice(first, last + 1) if last - first + 1 == self.length else index
        self.first = int((index < first_query).sum())
        self.types = types
        self.device = types.device

        present = [kind for kind in range(3) if bool((types == kind).any())]
        near = [kind for kind in present if rules.windows[kind] is not None and rules.windows[kind] <= NEAR_LIMIT]
        far = [kind for kind in present if kind not in near]
        is_far = torch.zeros(3, dtype=torch.bool)
        is_far[far] = True
        self.is_far = is_far.to(self.device)[types]
        self.far_index = self.is_far.nonzero().flatten()
        self.far_index_list = self.far_index.cpu()
        decays = torch.tensor(rules.decays, dtype=torch.float64, device=self.device)
        self.decay = decays[types]
        far_decay = self.decay[self.far_index]
        self.far_decay = far_decay.masked_fill(far_decay > _STEEP, 0)
        self.steep_decay = far_decay - self.far_decay
        self.far_has_decay = any(0 < rules.decays[kind] <= _STEEP for kind in far)
        windows = [self.length if window is None else min(window, self.length) for window in rules.windows]
        self.window = torch.tensor(windows, device=self.device)[types]
        self.far_window = max((windows[kind] for kind in far), default=0)
        self.far_is_windowed = any(windows[kind] < self.length for kind in far)
        self.near_window = max((windows[kind] for kind in near), default=0)
        self.has_near = bool(near)
        self.hide = [pair for pair in rules.hide if pair[0] in present and pair[1] in present]
        far_is_steep = any(rules.decays[kind] > _STEEP for kind in far)
        self.far_needs_bias = self.far_is_windowed or far_is_steep or bool(self.hide)
        self._kept: tuple[int, list[Block]] | None = None

    @property
    def strip(self) -> int:
        """Columns that a block's strip may need."""
        return min(self.length, MAX_ROWS + self.near_window) if self.has_near else 0

    def blocks(self, heads: int) -> Iterable[Block]:
        """Return the blocks of queries, in order.

        Args:
            heads: Query heads, which share a block's intermediate.
        """
        if self._kept is not None and self._kept[0] == heads:
            return self._kept[1]

        columns = (self.length - self.first) * self.strip
        columns += self.far_index.numel() * (self.length if self.far_needs_bias else MAX_ROWS)
        if 4 * columns > _KEPT_BYTES:
            return self._make_blocks(heads)
        self._kept = (heads, list(self._make_blocks(heads)))
        return self._kept[1]

    def _make_blocks(self, heads: int) -> Iterator[Block]:
        start = self.first
        while start < self.length:
            far = int(torch.searchsorted(self.far_index_list, start + MAX_ROWS))
            rows = _BLOCK_BYTES // (4 * heads * max(far + self.strip, 1))
            rows = max(_MIN_ROWS, min(MAX_ROWS, 1 << max(rows, 1).bit_length() - 1))
            yield self.block(start, min(start + rows, self.length))
            start += rows

    def block(self, start: int, stop: int) -> Block:
        """Return the block of the queries from `start` up to, not including, `stop`."""
        near_rows = slice(max(0, start - self.near_window), stop) if self.has_near else slice(0, 0)
        edges = torch.tensor([start - self.far_window, start, stop])
        far_start, far_partial, far_stop = torch.searchsorted(self.far_index_list, edges).tolist()
        if not self.far_is_windowed:
            far_start = 0

        queries = torch.arange(start, stop, device=self.device)[:, None]
        near_bias = None
        if self.has_near:
            keys = torch.arange(near_rows.start, near_rows.stop, device=self.device)
            distance = queries - keys
            bias = -self.decay[near_rows] * distance
            hidden = self._hidden(queries, keys, distance) | self.is_far[near_rows]
            near_bias = bias.masked_fill(hidden, float("-inf")).float()

        if self.far_needs_bias:
            far_partial = far_start
        far_bias = None
        if far_partial < far_stop:
            keys = self.far_index[far_partial:far_stop]
            distance = queries - keys
            hidden = self._hidden(queries, keys, distance)
            bias = -self.steep_decay[far_partial:far_stop] * distance
            far_bias = bias.masked_fill_(hidden, float("-inf")).float()

        return Block(
            start,
            stop - start,
            slice(start - self.first, stop - self.first),
            near_rows,
            far_start,
            far_stop,
            near_bias,
            far_bias,
        )

    def _hidden(self, queries: torch.Tensor, keys: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        hidden = (distance < 0) | (distance > self.window[keys])
        for query_type, key_type in self.hide:
            hidden |= (self.types[queries] == query_type) & (self.types[keys] == key_type) & (distance != 0)
        return hidden

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the document's tokens of a (heads, L, …) tensor."""
        return tensor[:, self.places]

    def add(self, target: torch.Tensor, values: torch.Tensor) -> None:
        """Add to the document's tokens of a (heads, L, …) tensor."""
        target[:, self.places] += values.to(target.dtype)

    def take_queries(self, tensor: torch.Tensor, offset: int) -> torch.Tensor:
        """Return the document's queries of a (heads, Q, …) tensor whose first query stands at place `offset`."""
        return tensor[:, self._query_places(offset)]

    def put_queries(self, target: torch.Tensor, values: torch.Tensor, offset: int) -> None:
        """Write the document's queries of a (heads, Q, …) tensor."""
        target[:, self._query_places(offset)] = values.to(target.dtype)

    def _query_places(self, offset: int) -> slice | torch.Tensor:
        if isinstance(self.places, slice):
            return slice(self.places.start + self.first - offset, self.places.stop - offset)
        return self.places[self.first :] - offset


@dataclass(frozen=True)
class EffectiveRules:
    """The rules of a layer, by `SemanticType`: HSA's and the model's own sliding window together.

    Attributes:
        decays: Slope of a key.
        windows: Largest distance at which a key is seen; None: no limit.
        hide: Pairs (query type, key type) that never see each other.
    """

    decays: tuple[float, ...]
    windows: tuple[int | None, ...]
    hide: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, config: HSAConfig, sliding_window: int | None, neutral: bool) -> "EffectiveRules":
        """Join a configuration (left out if `neutral`) and a sliding window (keys with d < sliding_window)."""
        decays = (0.0, 0.0, 0.0) if neutral else config.decays
        windows: tuple[int | None, ...] = (None, None, None) if neutral else config.windows
        if sliding_window is not None:
            limit = max(sliding_window - 1, 0)
            windows = tuple(limit if window is None else min(window, limit) for window in windows)
        return cls(decays, windows, () if neutral else config.hide)


class DocumentLayout:
    """All documents of a batch that have queries.

    Args:
        document_ids: (B, L), 0 is padding.
        semantic_ids: (B, L).
        query_length: Q.
        rules: The rules that hold.
    """

    def __init__(
        self, document_ids: torch.Tensor, semantic_ids: torch.Tensor, query_length: int, rules: EffectiveRules
    ) -> None:
        self.query_offset = document_ids.shape[1] - query_length
        self.documents: list[Document] = []
        for row, ids in enumerate(document_ids):
            for number in torch.unique(ids).tolist():
                index = (ids == number).nonzero().flatten()
                if number == 0 or int(index[-1]) < self.query_offset:
                    continue
                self.documents.append(Document(row, index, semantic_ids[row, index], self.query_offset, rules))
