"""The tokens of one row cut into chunks, tiles and blocks of queries, with the keys that each of them sees."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from ...layer_rules import LayerRules


NEAR_LIMIT = 256  # windows up to this many tokens are cheap to read as a strip of all keys
MAX_ROWS = 1024  # of a chunk
MAX_BLOCK_ROWS = 256
_MIN_PANEL = 64
_BLOCK_BYTES = 3 * 2**20  # of a panel's logits, for two threads: what their caches hold a few times
_STEEP = 0.1  # decays above it get an exact bias: as head dimensions, large numbers that cancel would swallow q·k
LOG2_E = math.log2(math.e)
_KEPT_BYTES = 32 * 2**20  # of biases, kept for the other layers and the backward pass


@dataclass(frozen=True)
class Block:
    """Consecutive tiles of a chunk and the far keys in their sight.

    Attributes:
        tiles: The chunk's tiles that belong to it.
        far_start: First of the far keys in sight.
        far_stop: After the last of them.
        panel: How many far keys to take at a time.
        bias: (tiles, 1, tile rows, columns), added to the logits of the last far keys: −inf where one is not visible,
            and steep decays. None: all are plainly visible.
    """

    tiles: slice
    far_start: int
    far_stop: int
    panel: int
    bias: torch.Tensor | None


@dataclass(frozen=True)
class QueryChunk:
    """Consecutive queries, cut into tiles of equal rows; the last tile may be filled up with rows that do not exist.

    Attributes:
        start: The first query's place in the segment.
        stop: After the last one's.
        tiles: How many there are.
        near_bias: (tiles, 1, tile rows, strip columns), added to the logits of the strip of keys that ends with the
            tile: −inf where a key is not near or not visible.
        blocks: The tiles that see far keys.
    """

    start: int
    stop: int
    tiles: int
    near_bias: torch.Tensor
    blocks: list[Block]


class Segment:
    """Tokens of one row whose documents are contiguous: their far and near keys, and the chunks of their queries.

    A query's own key always counts as near, and never as far.

    Args:
        row: The row of the batch.
        index: Places of the tokens in the row, ascending, (n,).
        types: The `SemanticType` of each, (n,).
        documents: The number of each token's document, (n,).
        first_query: Place from which on the row's tokens are queries too.
        rules: The rules that hold, windows narrowed to the model's own.
        positions: (n,), the tokens' places in their one document, if tokens between them are missing. None: none is.

    Attributes:
        length: n.
        positions: (n,), what distances are counted by, from 0 for the first token.
        first: Place in the segment of its first query.
        window: Largest distance of a near key.
        tile: Rows of a tile.
        far_index: Places in the segment of the far keys, ascending, (F,) int64; `far_positions`: their positions.
        far_decay: (F,) float64 where the device has it; 0 where it is too steep for head dimensions and part of the
            blocks' `bias`.
        far_has_decay: Whether any is not 0.
    """

    def __init__(
        self,
        row: int,
        index: torch.Tensor,
        types: torch.Tensor,
        documents: torch.Tensor,
        first_query: int,
        rules: LayerRules,
        positions: torch.Tensor | None = None,
    ) -> None:
        self.row, self.length, self.device = row, len(index), types.device
        first, last = int(index[0]), int(index[-1])
        self.places: slice | torch.Tensor = slice(first, last + 1) if last - first + 1 == self.length else index
        self.first = int((index < first_query).sum())
        self.first_query = first_query
        self._has_gaps = positions is not None
        self.positions = (
            torch.arange(self.length, device=self.device) if positions is None else positions - positions[0]
        )
        span = int(self.positions[-1]) + 1

        present = torch.bincount(types, minlength=3).cpu() > 0
        windows = [span if window is None else min(window, span) for window in rules.windows]
        near = [kind for kind in range(3) if present[kind] and windows[kind] <= min(NEAR_LIMIT, self.length - 1)]
        far = [kind for kind in range(3) if present[kind] and kind not in near]
        self.window = max((windows[kind] for kind in near), default=0)
        self.tile = min(32 if self.window <= 64 else 64, self.length - self.first)

        # Near keys by place, with a margin on both sides so that every tile's strip is inside.
        is_far = torch.tensor([kind in far for kind in range(3)], device=self.device)[types]
        decay = torch.tensor(rules.decays, dtype=torch.float32, device=self.device)[types]
        reach = torch.tensor(windows, device=self.device)[types]
        margin = (self.window, MAX_ROWS)
        self._near_reach = torch.nn.functional.pad(reach.masked_fill(is_far, -1), margin, value=-1)
        self._near_decay = torch.nn.functional.pad(decay, margin)
        self._types = torch.nn.functional.pad(types, margin)
        self._documents = torch.nn.functional.pad(documents, margin)
        if self._has_gaps:
            self._positions = torch.nn.functional.pad(self.positions, margin)
            self._positions[-MAX_ROWS:] = span

        self.far_index = is_far.nonzero().flatten()
        self.far_reach = reach[self.far_index]
        self.far_positions = self.positions[self.far_index]
        precise = torch.float32 if self.device.type == "mps" else torch.float64  # MPS has no float64
        decay = torch.tensor(rules.decays, dtype=precise, device=self.device)[types[self.far_index]]
        self.far_decay = decay.masked_fill(decay > _STEEP, 0)
        self._steep_decay = (decay - self.far_decay).float()
        self.far_has_decay = any(0 < rules.decays[kind] <= _STEEP for kind in far)
        self._far_window = max((windows[kind] for kind in far), default=0)
        self.hide = [pair for pair in rules.hide if present[pair[0]] and present[pair[1]]]
        self._far_needs_bias = (
            bool(self.hide)
            or any(windows[kind] < span for kind in far)
            or any(rules.decays[kind] > _STEEP for kind in far)
        )

        starts = torch.ones_like(documents, dtype=torch.bool)
        starts[1:] = documents[1:] != documents[:-1]
        self.has_documents = bool(starts[1:].any())
        numbers = torch.arange(self.length, device=self.device)
        self._document_start = torch.where(starts, numbers, 0).cpu().cummax(0).values.numpy()
        self._far_places = self.far_index.cpu().numpy()
        self._kept: tuple[int, list[QueryChunk]] | None = None

    @property
    def strip(self) -> int:
        """Keys that a tile's near logits are computed for."""
        return self.window + self.tile

    def chunks(self, heads: int) -> Iterable[QueryChunk]:
        """Return the chunks of queries, in order.

        Args:
            heads: Query heads, which share a block's intermediate.
        """
        if self._kept is not None and self._kept[0] == heads:
            return self._kept[1]

        columns = (self.length - self.first) * self.strip
        columns += self.far_index.numel() * (self.length if self._far_needs_bias else 256)
        if 4 * columns > _KEPT_BYTES:
            return self._make_chunks(heads)
        self._kept = (heads, list(self._make_chunks(heads)))
        return self._kept[1]

    def _make_chunks(self, heads: int) -> Iterator[QueryChunk]:
        size = self._tiles_within(heads * self.strip) * self.tile
        step = max(1, MAX_BLOCK_ROWS // self.tile)
        for start in range(self.first, self.length, size):
            stop = min(start + size, self.length)
            tiles = -(-(stop - start) // self.tile)
            blocks = [self._block(start, first, min(first + step, tiles), heads) for first in range(0, tiles, step)]
            yield QueryChunk(start, stop, tiles, self._near_bias(start, tiles), [b for b in blocks if b is not None])

    def _block_bytes(self) -> int:
        # other devices than the CPU have no such cache, but want few and large products
        pairs_of_threads = max(1, torch.get_num_threads() // 2) if self.device.type == "cpu" else 16
        return _BLOCK_BYTES * pairs_of_threads

    def _tiles_within(self, elements_per_row: int) -> int:
        rows = min(MAX_ROWS, self._block_bytes() // (4 * elements_per_row))
        return max(1, rows // self.tile)

    def _near_bias(self, start: int, tiles: int) -> torch.Tensor:
        span = slice(start, start + tiles * self.tile + self.window)  # of the padded arrays: starts a window earlier
        reach, decay, types, documents = (
            values[span].unfold(0, self.strip, self.tile)[:, None]
            for values in (self._near_reach, self._near_decay, self._types, self._documents)
        )
        rows = torch.arange(self.tile, device=self.device)[:, None]
        distance = places = rows + self.window - torch.arange(self.strip, device=self.device)
        own = slice(self.window, None)
        if self._has_gaps:
            positions = self._positions[span].unfold(0, self.strip, self.tile)[:, None]
            distance = positions[..., own].transpose(1, 2) - positions
        hidden = (places < 0) | (distance > reach)
        if self.has_documents:
            hidden |= documents != documents[..., own].transpose(1, 2)
        for query_type, key_type in self.hide:
            hidden |= (types[..., own].transpose(1, 2) == query_type) & (types == key_type)
        bias = (decay * (-LOG2_E * distance)).masked_fill_(hidden, float("-inf"))
        return bias.masked_fill_(places == 0, 0.0)[:, None]

    def _block(self, chunk_start: int, first: int, last: int, heads: int) -> Block | None:
        start, stop = chunk_start + first * self.tile, min(chunk_start + last * self.tile, self.length)
        document_start = self._document_start[start]
        sees_from = max(document_start, start - self._far_window)
        far_start, partial, far_stop = self._far_places.searchsorted([sees_from, start, stop - 1]).tolist()
        if far_start == far_stop:
            return None

        if self._far_needs_bias or self._document_start[stop - 1] != document_start:
            partial = far_start
        bias = self._far_bias(start, last - first, slice(partial, far_stop)) if partial < far_stop else None
        number = far_stop - far_start
        panel = max(_MIN_PANEL, self._block_bytes() // (4 * heads * (last - first) * self.tile))
        panel = -(-number // -(-number // panel))  # of equal width, rounded up to whole cache lines
        panel = -(-panel // 16) * 16
        return Block(slice(first, last), far_start, far_stop, panel, bias)

    def _far_bias(self, start: int, tiles: int, far: slice) -> torch.Tensor:
        queries = torch.arange(start, start + tiles * self.tile, device=self.device)[:, None]
        keys = self.far_index[far]
        distance = places = queries - keys
        own = slice(self.window + start, self.window + start + tiles * self.tile)
        at_keys = keys + self.window
        if self._has_gaps:
            distance = self._positions[own, None] - self._positions[at_keys]
        hidden = (places <= 0) | (distance > self.far_reach[far])
        if self.has_documents:
            hidden |= self._documents[own, None] != self._documents[at_keys]
        for query_type, key_type in self.hide:
            hidden |= (self._types[own, None] == query_type) & (self._types[at_keys] == key_type)
        bias = (self._steep_decay[far] * (-LOG2_E * distance)).masked_fill_(hidden, float("-inf"))
        return bias.view(tiles, 1, self.tile, -1)

    def take(self, tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Return tokens `start` to `stop` of a row's (heads, L, …) keys or values."""
        return tensor[:, self._places(start, stop, 0)]

    def add(self, target: torch.Tensor, values: torch.Tensor, start: int, stop: int) -> None:
        """Add to tokens `start` to `stop` of a row's (heads, L, …) keys or values."""
        target[:, self._places(start, stop, 0)] += values

    def take_queries(self, tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Return tokens `start` to `stop` of a row's (heads, Q, …) queries."""
        return tensor[:, self._places(start, stop, self.first_query)]

    def put_queries(self, target: torch.Tensor, values: torch.Tensor, start: int, stop: int) -> None:
        """Write tokens `start` to `stop` of a row's (heads, Q, …) queries."""
        target[:, self._places(start, stop, self.first_query)] = values

    def _places(self, start: int, stop: int, offset: int) -> slice | torch.Tensor:
        if isinstance(self.places, slice):
            return slice(self.places.start + start - offset, self.places.start + stop - offset)
        return self.places[start:stop] - offset
