"""Keys of single queries, copied out of the cache by whole blocks, a few requests at a time.

Copied one by one, keys take twice as long; and what many requests copy at once is out of the processor's cache before it is used.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..attention import AttentionPlan
from ..attention.layer_rules import LayerRules


_SPARE = 1.5  # tokens of the blocks, as a multiple of the keys: with more, keys are copied one by one
_COPIED = 2**20  # bytes that are copied at once, about
_buffers: dict[torch.dtype, torch.Tensor] = {}  # kept: new memory costs as much as what is copied into it


@dataclass
class WholeBlocks:
    """Where the keys of single queries lie, in blocks.

    Legend: B requests with one query each, N blocks of each, U tokens of a block, W keys of the longest.

    Attributes:
        plan: What queries and keys are; rows of W keys, those of shorter ones padded at their beginning.
        places: (B, Hkv·N) int64, the blocks, as rows of `key_rows` that were joined to blocks.
        columns: Where the keys stand among the B·N·U tokens of the blocks, int64, one request's after the other's.
        spare: By part, which of its tokens, times Hkv, are no keys, int64: what stands there may be anything.
        part: How many requests are in a part; the last one may have fewer.
        shape: (Hkv, N·U).
    """

    plan: AttentionPlan
    places: torch.Tensor
    columns: torch.Tensor
    spare: list[torch.Tensor]
    part: int
    shape: tuple[int, int]
    _bias: dict[LayerRules, torch.Tensor] = field(default_factory=dict)

    def attend(self, query: torch.Tensor, rows: torch.Tensor, rules: LayerRules, scale: float) -> torch.Tensor:
        """Return what the queries see.

        Args:
            query: (B, H, D).
            rows: (tokens·Hkv, 2·D), `key_rows` of a layer.
            rules: Of the layer.
            scale: Factor of q·k.

        Returns:
            (B, H, D).
        """
        heads, tokens = self.shape
        size, bias = query.shape[2], self.bias(rules)
        asked = query.reshape(len(query), heads, -1, size)  # heads that share a key are rows of one product
        output = torch.empty_like(asked)
        blocks = rows.view(-1, 2 * size * heads * tokens // self.places.shape[1])
        for first, spare in zip(range(0, len(query), self.part), self.spare):
            part = slice(first, first + self.part)
            places = self.places[part].reshape(-1)
            held = _buffer(places.numel() * blocks.shape[1], rows.dtype)
            torch.index_select(blocks, 0, places, out=held.view(-1, blocks.shape[1]))
            held.view(-1, 2 * size).index_fill_(0, spare, 0)
            keys, values = held.view(-1, heads, tokens, 2 * size).chunk(2, dim=-1)
            output[part] = F.scaled_dot_product_attention(asked[part], keys, values, bias[part], scale=scale)
        return output.view(query.shape)

    def bias(self, rules: LayerRules) -> torch.Tensor:
        """Return (B, 1, 1, N·U) float32, made once for all layers with these rules."""
        if rules not in self._bias:
            by_key = self.plan.dense_bias(torch.float32, rules).flatten()
            if self.plan.is_padding is not None:
                by_key = by_key[~self.plan.is_padding.flatten()]
            bias = by_key.new_full((len(self.places) * self.shape[1],), float("-inf"))
            bias[self.columns] = by_key
            self._bias[rules] = bias.view(len(self.places), 1, 1, -1)
        return self._bias[rules]


def _buffer(number: int, dtype: torch.dtype) -> torch.Tensor:
    """Return memory for so many values; what it held before is lost."""
    held = _buffers.get(dtype)
    if held is None or len(held) < number:
        held = _buffers[dtype] = torch.empty(number, dtype=dtype)
    return held[:number]


def whole_blocks(
    plan: AttentionPlan,
    positions: NDArray[np.int64],
    numbers: NDArray[np.int64],
    tables: list[NDArray[Any]],
    heads: int,
    block_size: int,
    token_bytes: int,
) -> WholeBlocks | None:
    """Find the blocks of some requests' keys. None: too little of them would be keys.

    Args:
        plan: Of the requests, with one query each.
        positions: Of their keys, ascending in each, one request's after the other's.
        numbers: (B,), how many keys each has.
        tables: The block table of each.
        heads: Hkv.
        block_size: U.
        token_bytes: Of a token's keys and values.
    """
    ends = np.cumsum(numbers)
    of_key, inner = np.divmod(positions, block_size)
    is_first = np.diff(of_key, prepend=-1) != 0
    is_first[ends[:-1]] = True
    rank = np.cumsum(is_first)  # of its block among all
    before = np.append(0, rank[ends - 1])  # blocks of the requests before each
    number = int(np.diff(before).max())
    tokens = number * block_size
    if tokens * len(numbers) > _SPARE * len(positions):
        return None
    found = of_key[is_first]
    blocks = np.empty((len(numbers), number), np.int64)
    for row, table in enumerate(tables):
        own = table[found[before[row] : before[row + 1]]]
        blocks[row, : len(own)], blocks[row, len(own) :] = own, own[-1]
    first_of_row = np.arange(len(numbers)) * number - before[:-1] - 1
    columns = (rank + np.repeat(first_of_row, numbers)) * block_size + inner
    is_spare = np.ones(len(numbers) * tokens, bool)
    is_spare[columns] = False
    by_head = np.repeat(is_spare.reshape(len(numbers), 1, tokens), heads, axis=1)
    part = max(1, _COPIED // (tokens * token_bytes))
    spare = [torch.from_numpy(np.flatnonzero(by_head[row : row + part])) for row in range(0, len(numbers), part)]
    places = (blocks[:, None, :] * heads + np.arange(heads)[:, None]).reshape(len(numbers), -1)
    return WholeBlocks(plan, torch.from_numpy(places), torch.from_numpy(columns), spare, part, (heads, tokens))
