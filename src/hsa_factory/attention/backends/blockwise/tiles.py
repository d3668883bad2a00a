"""What the forward and the backward pass of `blockwise` share: rows of queries cut into tiles, far keys in panels."""

from collections.abc import Iterator

import torch

from .far_keys import LOG2_E, Bias
from .segment import QueryChunk, Segment
from .workspace import Workspace


class Pass:
    """What both passes over a segment of one row need.

    Rows of a chunk are kept as (Hkv, tiles · G · tile rows, size): all groups of a tile, then the next tile's.
    """

    def __init__(
        self,
        segment: Segment,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        work: Workspace,
    ) -> None:
        self.segment, self.query, self.key, self.value = segment, query, key, value
        self.scale, self.work = scale, work
        self.heads, self.head_size = query.shape[0], query.shape[2]
        self.kv_heads, self.value_size = key.shape[0], value.shape[2]
        self.groups = self.heads // self.kv_heads
        self.bias_size = 2 if segment.far.has_decay else 0

        # far keys: k, 1, −decay, decay·(j − start); far values: v, 1
        self.far_number = segment.far.index.numel()
        places = segment.places
        self.far_places = segment.far.index + places.start if isinstance(places, slice) else places[segment.far.index]
        self.far_key = work.get("far_key", self.kv_heads, self.far_number, self.head_size + 1 + self.bias_size)
        self.far_value = work.get("far_value", self.kv_heads, self.far_number, self.value_size + 1)
        for buffer, source in ((self.far_key, key), (self.far_value, value)):
            size = source.shape[2]
            buffer[..., :size] = source.index_select(1, self.far_places)
            buffer[..., size] = 1
        if self.bias_size:
            self.far_key[..., -2] = -LOG2_E * segment.far.decay

    def load_queries(self, chunk: QueryChunk) -> torch.Tensor:
        """Return a chunk's rows (Hkv, R, D + 1 + bias dimensions): scaled q, 0, i − start, 1; fit the far keys to it."""
        segment = self.segment
        rows = chunk.tiles * segment.tile
        query = self.work.get("query", self.kv_heads, self.groups * rows, self.far_key.shape[2])
        self.load(segment.take_queries(self.query, chunk.start, chunk.stop), query, chunk, self.scale * LOG2_E)
        query[..., self.head_size] = 0
        if self.bias_size:
            first = segment.tokens.positions[chunk.start]
            numbers = query.new_zeros(rows)
            numbers[: chunk.stop - chunk.start] = segment.tokens.positions[chunk.start : chunk.stop] - first
            columns = self.by_tile(query, chunk)
            columns[..., -2] = numbers.view(chunk.tiles, segment.tile)
            columns[..., -1] = 1
            self.far_key[..., -1] = (segment.far.positions - first) * (LOG2_E * segment.far.decay)
        return query

    def tiles(self, rows: torch.Tensor, chunk: QueryChunk) -> torch.Tensor:
        """View rows of a chunk as (Hkv · tiles, G · tile rows, size)."""
        return rows.view(self.kv_heads * chunk.tiles, -1, rows.shape[2])

    def by_tile(self, rows: torch.Tensor, chunk: QueryChunk) -> torch.Tensor:
        """View rows of a chunk as (Hkv, G, tiles, tile rows, size)."""
        shape = (self.kv_heads, chunk.tiles, self.groups, self.segment.tile, rows.shape[2])
        return rows.view(shape).transpose(1, 2)

    def load(self, source: torch.Tensor, rows: torch.Tensor, chunk: QueryChunk, factor: float = 1.0) -> None:
        """Write (H, queries, size) · factor into the first columns of rows; rows that do not exist become 0."""
        by_tile = self.by_tile(rows, chunk)[..., : source.shape[2]]
        factors = source.new_full((1,), factor, dtype=self.work.dtype)  # a tensor: half precision is widened first
        for target, part in self._pieces(by_tile, source, chunk):
            torch.mul(part, factors, out=target)
        missing = chunk.tiles * self.segment.tile - source.shape[1]
        if missing:
            self.by_tile(rows, chunk)[:, :, -1, -missing:] = 0

    def store(
        self, rows: torch.Tensor, factors: torch.Tensor | float, chunk: QueryChunk, target: torch.Tensor
    ) -> None:
        """Write rows of a chunk · factors, (Hkv, R, 1), into (H, queries, size)."""
        segment = self.segment
        in_place = isinstance(segment.places, slice)
        result = segment.take_queries(target, chunk.start, chunk.stop)  # a view, or a copy of scattered rows
        pieces = self._pieces(self.by_tile(rows, chunk), result, chunk)
        parts_of_factors = [factors] * len(pieces)
        if isinstance(factors, torch.Tensor):
            parts_of_factors = [part for part, _ in self._pieces(self.by_tile(factors, chunk), result, chunk)]
        for (part, place), factor in zip(pieces, parts_of_factors, strict=True):
            torch.mul(part, factor, out=place)
        if not in_place:
            segment.put_queries(target, result, chunk.start, chunk.stop)

    def _pieces(
        self, by_tile: torch.Tensor, flat: torch.Tensor, chunk: QueryChunk
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Pair whole tiles, and the rest of the last one, of both views (the second is (H, queries, size))."""
        tile = self.segment.tile
        flat = flat.view(self.kv_heads, self.groups, *flat.shape[1:])
        whole, rest = divmod(chunk.stop - chunk.start, tile)
        pairs = []
        if whole:
            pairs.append((by_tile[:, :, :whole], flat[:, :, : whole * tile].unflatten(2, (whole, tile))))
        if rest:
            pairs.append((by_tile[:, :, whole, :rest], flat[:, :, whole * tile :]))
        return pairs

    def strips(self, name: str, source: torch.Tensor, chunk: QueryChunk) -> torch.Tensor:
        """Copy each tile's strip of keys or values and a column of ones: (Hkv · tiles, strip columns, size + 1)."""
        segment, size = self.segment, source.shape[2]
        start, stop = chunk.start - segment.window, chunk.start + chunk.tiles * segment.tile
        inside = segment.take(source, max(start, 0), min(stop, segment.length))
        if start < 0 or stop > segment.length:
            inside = torch.nn.functional.pad(inside, (0, 0, max(-start, 0), max(stop - segment.length, 0)))
        buffer = self.work.get(name, self.kv_heads, chunk.tiles, segment.strip, size + 1)
        buffer[..., :size] = inside.unfold(1, segment.strip, segment.tile).transpose(2, 3)
        buffer[..., size] = 1
        return buffer.flatten(0, 1)

    def near_logits(self, query: torch.Tensor, keys: torch.Tensor, chunk: QueryChunk) -> torch.Tensor:
        """Compute the biased logits (Hkv · tiles, G · tile rows, strip columns) of a chunk's rows and strips of keys."""
        rows = self.tiles(query, chunk)[..., : self.head_size + 1]
        logits = self.work.get("near_logits", *rows.shape[:2], self.segment.strip)
        torch.bmm(rows, keys.transpose(1, 2), out=logits)
        shape = (self.kv_heads, chunk.tiles, self.groups, self.segment.tile, logits.shape[2])
        logits.view(shape).add_(chunk.near_bias)
        return logits

    def far_panels(self, chunk: QueryChunk) -> Iterator[tuple[slice, slice, list[Bias]]]:
        """Yield what a chunk sees of the far keys, panel by panel: the rows, the far keys and their biases."""
        group = self.groups * self.segment.tile
        for block in chunk.blocks:
            rows = slice(block.tiles.start * group, block.tiles.stop * group)
            for start in range(block.far_start, block.far_stop, block.panel):
                far = slice(start, min(start + block.panel, block.far_stop))
                yield rows, far, [part for bias in block.biases for part in bias.within(far)]

    def far_logits(self, rows: torch.Tensor, far: slice, biases: list[Bias]) -> torch.Tensor:
        """Compute the biased logits (Hkv, R, C) of a block's rows (Hkv, R, size) and far keys."""
        keys = self.far_key[:, far]
        logits = self.work.get("far_logits", self.kv_heads, rows.shape[1], keys.shape[1])
        torch.bmm(rows, keys.transpose(1, 2), out=logits)
        for bias in biases:
            tiles, _, tile, columns = bias.values.shape
            first = bias.start - far.start
            by_tile = logits.view(self.kv_heads, tiles, self.groups, tile, -1)
            by_tile[..., first : first + columns].add_(bias.values)
        return logits
