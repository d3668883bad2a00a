"""Keys that are seen from afar, gathered in bands, and which of them a block of queries sees."""

import math
from dataclasses import dataclass

import torch

from ...layer_rules import LayerRules


LOG2_E = math.log2(math.e)
# Of a block's keys, about as many end or begin within it as it has rows: more rows, more of its pairs are in vain. Fewer,
# more blocks: measured, this many pairs in vain cost what a block costs by itself.
_PAIRS_IN_VAIN = 1024
_STEEP = 0.1  # decays above it get an exact bias: as head dimensions, large numbers that cancel would swallow q·k


@dataclass(frozen=True)
class Tokens:
    """The tokens of a segment, by place in it.

    Attributes:
        types: (n,) int64, the `SemanticType` of each.
        positions: (n,) int64, what distances are counted by, from 0 for the first token.
        last_seen: (n,) int64, the last place that sees each.
    """

    types: torch.Tensor
    positions: torch.Tensor
    last_seen: torch.Tensor


@dataclass(frozen=True)
class Bias:
    """What is added to the logits of some of a block's keys.

    Attributes:
        start: The first of the far keys that it is for.
        values: (tiles, 1, tile rows, columns): −inf where a key is not visible, and steep decays.
    """

    start: int
    values: torch.Tensor

    def within(self, far: slice) -> list["Bias"]:
        """Return the part of it that is for these far keys, if there is one."""
        start, stop = max(self.start, far.start), min(self.start + self.values.shape[-1], far.stop)
        return [Bias(start, self.values[..., start - self.start : stop - self.start])] if start < stop else []


@dataclass(frozen=True)
class Block:
    """Consecutive tiles of a chunk and the far keys of one band in their sight.

    Attributes:
        tiles: The chunk's tiles that belong to it.
        far_start: First of the far keys in sight.
        far_stop: After the last of them.
        panel: How many far keys to take at a time.
        biases: For keys that not all rows see, or whose decay is steep; the others are plainly visible.
    """

    tiles: slice
    far_start: int
    far_stop: int
    panel: int
    biases: tuple[Bias, ...]


class Band:
    """Far keys of the same reach, in order: the later a key, the later it is last seen.

    Args:
        offset: Where they begin among the far keys.
        index: (f,) their places in the segment, ascending; at least one.
        last_seen: (f,) the last place that sees each, ascending.
        needs_bias: Whether each of them has a bias wherever it is seen.
        length: Tokens of the segment.
        max_rows: Queries that a block takes at most.

    Attributes:
        rows: How many queries a block takes.
    """

    def __init__(
        self, offset: int, index: torch.Tensor, last_seen: torch.Tensor, needs_bias: bool, length: int, max_rows: int
    ) -> None:
        self.offset, self.needs_bias = offset, needs_bias
        self._places, self._last_seen = index.cpu().numpy(), last_seen.cpu().numpy()
        self.rows = max_rows
        if int(last_seen[0]) < length - 1:
            in_vain = _PAIRS_IN_VAIN * length / len(index)
            self.rows = min(max_rows, 2 ** int(math.log2(in_vain) / 2))

    def range(self, start: int, stop: int, keys_stop: int) -> tuple[slice, list[slice]]:
        """Find the keys before `keys_stop` that queries `start` to `stop` see, and those that need a bias.

        Returns:
            Both as places among the far keys.
        """
        first = int(self._last_seen.searchsorted(start))
        last = int(self._places.searchsorted(keys_stop))
        ended = min(int(self._last_seen.searchsorted(stop - 1)), last)  # before it: not seen by all rows
        begun = max(int(self._places.searchsorted(start)), first)  # from it on: in the block itself
        if self.needs_bias or ended >= begun:
            biased = [(first, last)]
        else:
            biased = [(first, ended), (begun, last)]
        spans = [(first, last), *((one, other) for one, other in biased if one < other)]
        found, *parts = (slice(self.offset + one, self.offset + other) for one, other in spans)
        return found, parts


class FarKeys:
    """The far keys of a segment, band after band, each in order.

    Args:
        tokens: The segment's.
        bands: The types of each band.
        rules: The rules that hold.
        hide: Those of its pairs that occur.
        max_rows: Of a block.

    Attributes:
        index: (F,) int64, their places in the segment; `positions`: their positions.
        decay: (F,) float64 where the device has it; 0 where it is too steep for head dimensions and part of the blocks'
            biases.
        has_decay: Whether any is not 0.
        bands: The bands.
    """

    def __init__(
        self,
        tokens: Tokens,
        bands: list[list[int]],
        rules: LayerRules,
        hide: list[tuple[int, int]],
        max_rows: int,
    ) -> None:
        device, length = tokens.types.device, len(tokens.types)
        indices = [torch.isin(tokens.types, torch.tensor(band, device=device)).nonzero().flatten() for band in bands]
        self.index = torch.cat([tokens.types.new_zeros(0), *indices])
        self.positions = tokens.positions[self.index]
        self._types, self._last_seen = tokens.types[self.index], tokens.last_seen[self.index]
        precise = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        decay = torch.tensor(rules.decays, dtype=precise, device=device)[self._types]
        self.decay = decay.masked_fill(decay > _STEEP, 0)
        self._steep_decay = (decay - self.decay).float()
        self.has_decay = any(0 < rules.decays[kind] <= _STEEP for band in bands for kind in band)
        self._tokens, self._hide = tokens, hide

        self.bands: list[Band] = []
        offset = 0
        for band, index in zip(bands, indices):
            needs_bias = bool(hide) or any(rules.decays[kind] > _STEEP for kind in band)
            self.bands.append(Band(offset, index, tokens.last_seen[index], needs_bias, length, max_rows))
            offset += len(index)

    def bias(self, far: slice, start: int, tiles: int, tile: int) -> Bias:
        """Return the bias of some far keys for the queries of `tiles` tiles from place `start` on.

        A key in a query's own tile is near, so that it is hidden here.
        """
        queries = torch.arange(start, start + tiles * tile, device=self.index.device)
        at_queries = queries.clamp(max=len(self._tokens.types) - 1)
        tile_starts = queries - (queries - start) % tile
        hidden = self.index[far] >= tile_starts[:, None]
        hidden |= queries[:, None] > self._last_seen[far]
        for query_type, key_type in self._hide:
            hidden |= (self._tokens.types[at_queries, None] == query_type) & (self._types[far] == key_type)
        distance = self._tokens.positions[at_queries, None] - self.positions[far]
        values = (self._steep_decay[far] * (-LOG2_E * distance)).masked_fill_(hidden, float("-inf"))
        return Bias(far.start, values.view(tiles, 1, tile, -1))
