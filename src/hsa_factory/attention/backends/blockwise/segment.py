"""The tokens of one row cut into chunks, tiles and blocks of queries, with the keys that each of them sees."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from ...layer_rules import LayerRules
from .far_keys import LOG2_E, Band, Block, FarKeys, Tokens


MAX_ROWS = 1024  # of a chunk
MAX_BLOCK_ROWS = 256
_MIN_PANEL = 64
_BLOCK_BYTES = 3 * 2**20  # of a panel's logits, for two threads: what their caches hold a few times
_KEPT_BYTES = 32 * 2**20  # of biases, kept for the other layers and the backward pass


@dataclass(frozen=True)
class QueryChunk:
    """Consecutive queries, cut into tiles of equal rows; the last tile may be filled up with rows that do not exist.

    Attributes:
        start: The first query's place in the segment.
        stop: After the last one's.
        tiles: How many there are.
        near_bias: (tiles, 1, tile rows, strip columns), added to the logits of the strip of keys that ends with the
            tile: −inf where a key is not near or not visible.
        blocks: The tiles that see far keys, band by band.
    """

    start: int
    stop: int
    tiles: int
    near_bias: torch.Tensor
    blocks: list[Block]

    @property
    def bytes(self) -> int:
        """What the biases take."""
        biases = [self.near_bias, *(bias.values for block in self.blocks for bias in block.biases)]
        return sum(bias.numel() * bias.element_size() for bias in biases)


class Segment:
    """Tokens of one row whose documents are contiguous: their far and near keys, and the chunks of their queries.

    Near is a key with a narrow window, and to a query also every key of its own tile; the others are far.

    Args:
        row: The row of the batch.
        index: Places of the tokens in the row, ascending, (n,).
        types: The `SemanticType` of each, (n,).
        positions: The position of each in its document, (n,).
        last_seen: The last position in its document that sees it, (n,).
        first_query: Place from which on the row's tokens are queries too.
        rules: The rules that hold.
        has_gaps: Whether tokens may be missing between those of the one document.

    Attributes:
        length: n.
        tokens: What is known of them.
        first: Place in the segment of its first query.
        window: Largest distance of a key with a narrow window.
        tile: Rows of a tile.
        far: The far keys.
    """

    def __init__(
        self,
        row: int,
        index: torch.Tensor,
        types: torch.Tensor,
        positions: torch.Tensor,
        last_seen: torch.Tensor,
        first_query: int,
        rules: LayerRules,
        has_gaps: bool = False,
    ) -> None:
        self.row, self.length, self.device = row, len(index), types.device
        first, last = int(index[0]), int(index[-1])
        self.places: slice | torch.Tensor = slice(first, last + 1) if last - first + 1 == self.length else index
        self.first = int((index < first_query).sum())
        self.first_query = first_query
        numbers = torch.arange(self.length, device=self.device)
        if has_gaps:
            last_seen = torch.searchsorted(positions.contiguous(), last_seen.contiguous(), right=True) - 1
            positions = positions - positions[0]
        else:
            last_seen, positions = last_seen - positions + numbers, numbers
        self.tokens = Tokens(types, positions, last_seen)
        span = int(positions[-1]) + 1

        is_present = (torch.bincount(types, minlength=3) > 0).tolist()
        near, bands = rules.bands([kind for kind in range(3) if is_present[kind]], longest=span - 1)
        self.window = max((rules.window_reach[kind] for kind in near), default=0)
        self.tile = min(32 if self.window <= 64 else 64, self.length - self.first)
        self._hide = [pair for pair in rules.hide if is_present[pair[0]] and is_present[pair[1]]]
        self.far = FarKeys(self.tokens, bands, rules, self._hide, MAX_BLOCK_ROWS)

        # By place, with a margin on both sides so that every tile's strip is inside.
        margin = (self.window, MAX_ROWS)
        is_near = torch.tensor([kind in near for kind in range(3)], device=self.device)[types]
        decay = torch.tensor(rules.decays, dtype=torch.float32, device=self.device)[types]
        self._is_near = torch.nn.functional.pad(is_near, margin)
        self._decay = torch.nn.functional.pad(decay, margin)
        self._types = torch.nn.functional.pad(types, margin)
        self._last_seen = torch.nn.functional.pad(last_seen, margin, value=-1)
        self._positions = torch.nn.functional.pad(positions, margin) if has_gaps else None
        self._kept: tuple[int, list[QueryChunk]] | None = None

    @property
    def strip(self) -> int:
        """Keys that a tile's near logits are computed for."""
        return self.window + self.tile

    def chunks(self, heads: int) -> Iterable[QueryChunk]:
        """Return the chunks of queries, in order; they are kept if they are small.

        Args:
            heads: Query heads, which share a block's intermediate.
        """
        if self._kept is not None and self._kept[0] == heads:
            return self._kept[1]
        return self._make_chunks(heads)

    def _make_chunks(self, heads: int) -> Iterator[QueryChunk]:
        size = self._tiles_within(heads * self.strip) * self.tile
        made: list[QueryChunk] | None = []
        room = _KEPT_BYTES
        for start in range(self.first, self.length, size):
            stop = min(start + size, self.length)
            tiles = -(-(stop - start) // self.tile)
            blocks = [block for band in self.far.bands for block in self._blocks(band, start, tiles, heads)]
            chunk = QueryChunk(start, stop, tiles, self._near_bias(start, tiles), blocks)
            room -= chunk.bytes
            if room < 0:
                made = None
            elif made is not None:
                made.append(chunk)
            yield chunk
        if made is not None:
            self._kept = (heads, made)

    def _block_bytes(self) -> int:
        # other devices than the CPU have no such cache, but want few and large products
        pairs_of_threads = max(1, torch.get_num_threads() // 2) if self.device.type == "cpu" else 16
        return _BLOCK_BYTES * pairs_of_threads

    def _tiles_within(self, elements_per_row: int) -> int:
        rows = min(MAX_ROWS, self._block_bytes() // (4 * elements_per_row))
        return max(1, rows // self.tile)

    def _near_bias(self, start: int, tiles: int) -> torch.Tensor:
        span = slice(start, start + tiles * self.tile + self.window)  # of the padded arrays: starts a window earlier
        last_seen, decay, is_near = (
            values[span].unfold(0, self.strip, self.tile)[:, None]
            for values in (self._last_seen, self._decay, self._is_near)
        )
        rows = torch.arange(self.tile, device=self.device)[:, None]
        columns = torch.arange(self.strip, device=self.device)
        distance = places = rows + self.window - columns
        own = slice(self.window, None)
        queries = torch.arange(start, start + tiles * self.tile, device=self.device).view(tiles, self.tile, 1)
        hidden = (places < 0) | (queries > last_seen) | ((columns < self.window) & ~is_near)
        if self._positions is not None:
            positions = self._positions[span].unfold(0, self.strip, self.tile)[:, None]
            distance = positions[..., own].transpose(1, 2) - positions
        if self._hide:
            types = self._types[span].unfold(0, self.strip, self.tile)[:, None]
            for query_type, key_type in self._hide:
                hidden |= (types[..., own].transpose(1, 2) == query_type) & (types == key_type)
        bias = (decay * (-LOG2_E * distance)).masked_fill_(hidden, float("-inf"))
        return bias.masked_fill_(places == 0, 0.0)[:, None]

    def _blocks(self, band: Band, chunk_start: int, tiles: int, heads: int) -> Iterator[Block]:
        """Yield the blocks of a chunk that see keys of a band."""
        step = max(1, band.rows // self.tile)
        for first in range(0, tiles, step):
            last = min(first + step, tiles)
            start, last_start = chunk_start + first * self.tile, chunk_start + (last - 1) * self.tile
            far, biased = band.range(start, min(last_start + self.tile, self.length), last_start)
            number = far.stop - far.start
            if number <= 0:
                continue
            biases = tuple(self.far.bias(part, start, last - first, self.tile) for part in biased)
            panel = max(_MIN_PANEL, self._block_bytes() // (4 * heads * (last - first) * self.tile))
            panel = -(-number // -(-number // panel))  # of equal width, rounded up to whole cache lines
            yield Block(slice(first, last), far.start, far.stop, -(-panel // 16) * 16, biases)

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
