"""Keys of single queries, copied out of the cache by whole blocks, in the order in which these lie there.

Copied one by one, or to and fro, keys take half as long again. What a request's next queries see is found out for as many of them
as stand in one block, and what was joined for a step stays for the next one but for what has changed: for each step anew it takes
longer than the attention of a small layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..attention.layer_rules import LayerRules
from .kept_memory import copied
from .reach import free_types, last_visible
from .tokens import TokenTypes


_SPARE = 1.5  # tokens of the blocks, as a multiple of the keys: with more, keys are copied one by one
_COPIED = 2**21  # bytes that are copied at once, about: more are out of the processor's cache before they are used


@dataclass(eq=False)
class BlocksAhead:
    """What the next queries of a request see, up to the end of the block in which they stand.

    Legend: S queries, N blocks, U tokens of a block.

    Attributes:
        start: Position of the first query.
        stop: Position after the last.
        kind: The type that the tokens after the first are taken to have.
        changes: How many changes of types there were.
        blocks: (N,) int64, the blocks of the cache that hold a key of theirs, ascending.
        bias: By the rules of layers, (S, N·U) float32. Empty: too many tokens are no keys, and keys are to be copied one by one.
        is_spare: (S, N·U), which tokens are no keys in any layer.
    """

    start: int
    stop: int
    kind: int
    changes: int
    blocks: NDArray[np.int64]
    bias: dict[LayerRules, NDArray[np.float32]] = field(default_factory=dict)
    is_spare: NDArray[np.bool_] = field(default_factory=lambda: np.empty((0, 0), bool))

    @classmethod
    def of(cls, tokens: TokenTypes, visible: NDArray[np.int64], table: NDArray[Any], block_size: int) -> "BlocksAhead":
        """Find out what a request's last token and those after it see.

        Args:
            tokens: The request's.
            visible: (K,), positions of the keys that the last token may see, ascending; the last is its own.
            table: Which block of the cache each of the request's blocks is.
            block_size: U.
        """
        start, kind = int(visible[-1]), int(tokens.types[visible[-1]])
        of_key = visible // block_size
        found = of_key[np.diff(of_key, prepend=-1) != 0]
        blocks = table[found].astype(np.int64)
        order = np.argsort(blocks)
        stop = (start // block_size + 1) * block_size
        ahead = cls(start, stop, kind, len(tokens.events), blocks[order])
        if len(found) * block_size > _SPARE * len(visible):
            return ahead

        positions = (found[order, None] * block_size + np.arange(block_size)).ravel()
        is_limited = ~free_types(tokens.rules)[tokens.types[np.minimum(positions, start)]]
        is_limited |= positions > start
        columns = np.flatnonzero(is_limited)  # the others are seen by all queries, unfaded
        ahead.is_spare = np.zeros((stop - start, len(positions)), bool)
        ahead.is_spare[:, columns] = True
        for rules in tokens.rules:
            own = _bias(tokens, rules, positions[columns], start, stop)
            ahead.bias[rules] = np.zeros(ahead.is_spare.shape, np.float32)
            ahead.bias[rules][:, columns] = own
            ahead.is_spare[:, columns] &= np.isneginf(own)
        return ahead

    def holds(self, tokens: TokenTypes, position: int) -> bool:
        """Whether it tells what a query sees, the request's last token."""
        return (
            self.start <= position < self.stop
            and len(tokens.events) == self.changes
            and tokens.types[position] == self.kind
        )


def _bias(
    tokens: TokenTypes, rules: LayerRules, positions: NDArray[np.int64], start: int, stop: int
) -> NDArray[np.float32]:
    """Return (S, K), what the rules add for queries [start, stop), all of one type and turn, and the keys at some positions.

    The first query is the last token that is known; later keys have its type and turn. PyTorch would take three times as long.
    """
    known = np.minimum(positions, start)
    types, reached = tokens.types[known], tokens.last
    if len(tokens.rules) > 1:
        reached = last_visible(tokens.types, tokens.turns, (rules,))
    ahead = positions - np.arange(start, stop)[:, None]
    hidden = (ahead > 0) | (reached[known] - known + ahead < 0)
    for query_type, key_type in rules.hide:
        if query_type == tokens.types[start]:
            hidden |= (types == key_type) & (ahead < 0)
    bias = np.array(rules.decays, np.float32)[types] * ahead.astype(np.float32)
    bias[hidden] = -np.inf
    return bias


class WholeBlocks:
    """Where the keys of single queries lie, in blocks: kept from step to step, and only what has changed made anew.

    Legend: B requests with one query each, N blocks of each, U tokens of a block, Hkv key/value heads.

    Args:
        requests: B.
        blocks: N, the most that any request has.
        rules: Of the layers.
        heads: Hkv.
        block_size: U.
        token_bytes: Of a token's keys and values.

    Attributes:
        places: (B, Hkv·N) int64, the blocks, as rows of `key_rows` that were joined to blocks.
        bias: By the rules of layers, (B, 1, 1, N·U) float32.
        parts: The requests that are copied at once.
        spare: For each part, which of its tokens, times Hkv, are no keys, int64: what stands there may be anything.
    """

    def __init__(
        self, requests: int, blocks: int, rules: Sequence[LayerRules], heads: int, block_size: int, token_bytes: int
    ) -> None:
        self._blocks, self._heads, self._block_size = blocks, heads, block_size
        self._tokens = blocks * block_size
        self._ahead: list[BlocksAhead | None] = [None] * requests
        self._is_spare = np.ones((requests, self._tokens), bool)
        self.places = torch.zeros(requests, heads * blocks, dtype=torch.int64)
        self.bias = {layer: torch.full((requests, 1, 1, self._tokens), -torch.inf) for layer in rules}
        step = max(1, _COPIED // (self._tokens * token_bytes))
        self.parts = [slice(first, min(first + step, requests)) for first in range(0, requests, step)]
        self._parts = {
            layer: [(part, self.places[part], bias[part]) for part in self.parts] for layer, bias in self.bias.items()
        }
        self.spare: list[torch.Tensor] = []

    def fits(self, requests: Sequence[BlocksAhead]) -> bool:
        """Whether requests have its size."""
        return len(requests) == len(self._ahead) and max(len(ahead.blocks) for ahead in requests) == self._blocks

    def update(self, requests: Sequence[BlocksAhead], positions: Sequence[int]) -> None:
        """Take over what the next step's queries see.

        Args:
            requests: B, of each what it sees.
            positions: B, of its query.
        """
        bias = {layer: rows.numpy()[:, 0, 0] for layer, rows in self.bias.items()}
        for row, (ahead, position) in enumerate(zip(requests, positions)):
            width, step = len(ahead.blocks) * self._block_size, position - ahead.start
            if ahead is not self._ahead[row]:
                self._place(row, ahead)
                self._is_spare[row, width:] = True
                for own in bias.values():
                    own[row, width:] = -np.inf
            self._is_spare[row, :width] = ahead.is_spare[step]
            for layer, own in bias.items():
                own[row, :width] = ahead.bias[layer][step]
        self.spare = [torch.from_numpy(self._spare_of(part)) for part in self.parts]

    def _place(self, row: int, ahead: BlocksAhead) -> None:
        """Let a row have other blocks; for those it lacks, it has its last one again."""
        own = np.full(self._blocks, ahead.blocks[-1])
        own[: len(ahead.blocks)] = ahead.blocks
        places = own if self._heads == 1 else (own * self._heads + np.arange(self._heads)[:, None]).ravel()
        self.places.numpy()[row] = places
        self._ahead[row] = ahead

    def _spare_of(self, part: slice) -> NDArray[np.int64]:
        spare = self._is_spare[part]
        if self._heads > 1:
            spare = np.repeat(spare[:, None], self._heads, axis=1)
        return np.flatnonzero(spare)

    def attend(
        self, query: torch.Tensor, rows: torch.Tensor, rules: LayerRules, scale: float, output: torch.Tensor
    ) -> None:
        """Write what the queries see.

        Args:
            query: (B, H, D).
            rows: (tokens·Hkv, 2·D), `key_rows` of a layer.
            rules: Of the layer.
            scale: Factor of q·k.
            output: (B, H, D), written to.
        """
        number, asked_heads, size = query.shape
        grouped = (-1, self._heads, asked_heads // self._heads, size)  # heads that share a key are rows of one product
        blocks = rows.view(-1, 2 * size * self._block_size)
        query, output = query.reshape(grouped), output.view(grouped)
        for (part, places, bias), spare in zip(self._parts[rules], self.spare):
            held = copied(blocks, places).view(-1, 2 * size).index_fill_(0, spare, 0)
            keys, values = held.view(-1, self._heads, self._tokens, 2 * size).split(size, -1)
            output[part] = F.scaled_dot_product_attention(query[part], keys, values, bias, scale=scale)
