"""Keys of single queries, copied out of the cache by whole blocks, a few requests at a time.

Copied one by one, keys take twice as long; and what many requests copy at once is out of the processor's cache before it is used.
What a request's next queries see is found out for as many of them as stand in one block: for each by itself it takes longer than
the attention of a small layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..attention import AttentionPlan
from ..attention.layer_rules import LayerRules
from .kept_memory import copied
from .tokens import TokenTypes


_SPARE = 1.5  # tokens of the blocks, as a multiple of the keys: with more, keys are copied one by one
_COPIED = 2**20  # bytes that are copied at once, about


@dataclass
class BlocksAhead:
    """What the next queries of a request see, up to the end of the block in which they stand.

    Legend: S queries, N blocks, U tokens of a block.

    Attributes:
        start: Position of the first query.
        kind: The type that the tokens after the first are taken to have.
        changes: How many changes of types there were.
        blocks: (N,) int64, which of the request's blocks hold a key of theirs.
        bias: By the rules of layers, (S, N·U) float32.
        is_spare: (S, N·U), which tokens are no keys in any layer. None: too many are, and keys are to be copied one by one.
    """

    start: int
    kind: int
    changes: int
    blocks: NDArray[np.int64]
    bias: dict[LayerRules, NDArray[np.float32]] = field(default_factory=dict)
    is_spare: NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, tokens: TokenTypes, visible: NDArray[np.int64], block_size: int) -> "BlocksAhead":
        """Find out what a request's last token and those after it see.

        Args:
            tokens: The request's.
            visible: (K,), positions of the keys that the last token may see, ascending; the last is its own.
            block_size: U.
        """
        start, kind = int(visible[-1]), int(tokens.types[visible[-1]])
        of_key = visible // block_size
        found = of_key[np.diff(of_key, prepend=-1) != 0]
        ahead = cls(start, kind, len(tokens.events), found)
        if len(found) * block_size > _SPARE * len(visible):
            return ahead
        positions = (found[:, None] * block_size + np.arange(block_size)).ravel()
        known = np.minimum(positions, start)
        plan = AttentionPlan(
            torch.from_numpy(np.where(positions > start, kind, tokens.types[known]).astype(np.int64))[None],
            torch.ones(1, len(positions), dtype=torch.int64),
            torch.from_numpy(positions)[None],
            block_size - start % block_size,
            has_gaps=True,
            has_padding=False,
            has_clean_padding=True,
            is_packed=False,
            turn_ids=None if tokens.turns is None else torch.from_numpy(tokens.turns[known])[None],
        )
        ahead.bias = {rules: plan.dense_bias(torch.float32, rules)[0, 0].numpy() for rules in tokens.rules}
        ahead.is_spare = np.all([np.isneginf(bias) for bias in ahead.bias.values()], axis=0)
        return ahead

    def holds(self, tokens: TokenTypes, position: int, block_size: int) -> bool:
        """Whether it tells what a query sees, the request's last token."""
        return (
            position // block_size == self.start // block_size
            and position >= self.start
            and len(tokens.events) == self.changes
            and tokens.types[position] == self.kind
        )


@dataclass
class WholeBlocks:
    """Where the keys of single queries lie, in blocks.

    Legend: B requests with one query each, N blocks of each, U tokens of a block.

    Attributes:
        places: (B, Hkv·N) int64, the blocks, as rows of `key_rows` that were joined to blocks.
        bias: By the rules of layers, (B, 1, 1, N·U) float32.
        spare: By part, which of its tokens, times Hkv, are no keys, int64: what stands there may be anything.
        part: How many requests are in a part; the last one may have fewer.
        shape: (Hkv, N·U).
    """

    places: torch.Tensor
    bias: dict[LayerRules, torch.Tensor]
    spare: list[torch.Tensor]
    part: int
    shape: tuple[int, int]

    @classmethod
    def of(
        cls,
        requests: Sequence[tuple[BlocksAhead, int]],
        tables: Sequence[NDArray[Any]],
        heads: int,
        block_size: int,
        token_bytes: int,
    ) -> "WholeBlocks":
        """Join requests.

        Args:
            requests: What each sees, and the position of its query.
            tables: The block table of each.
            heads: Hkv.
            block_size: U.
            token_bytes: Of a token's keys and values.
        """
        number = max(len(ahead.blocks) for ahead, _ in requests)
        tokens = number * block_size
        rules = requests[0][0].bias
        blocks = np.empty((len(requests), number), np.int64)
        bias = {layer: np.full((len(requests), tokens), -np.inf, np.float32) for layer in rules}
        is_spare = np.ones((len(requests), 1, tokens), bool)
        for row, ((ahead, position), table) in enumerate(zip(requests, tables)):
            own, step, width = table[ahead.blocks], position - ahead.start, len(ahead.blocks) * block_size
            blocks[row, : len(own)], blocks[row, len(own) :] = own, own[-1]
            assert ahead.is_spare is not None, "else its keys are copied one by one"
            is_spare[row, 0, :width] = ahead.is_spare[step]
            for layer in rules:
                bias[layer][row, :width] = ahead.bias[layer][step]
        by_head = np.repeat(is_spare, heads, axis=1) if heads > 1 else is_spare
        part = max(1, _COPIED // (tokens * token_bytes))
        spare = [np.flatnonzero(by_head[row : row + part]) for row in range(0, len(requests), part)]
        places = blocks[:, None, :] * heads + np.arange(heads)[:, None]
        return cls(
            torch.from_numpy(places.reshape(len(requests), -1)),
            {layer: torch.from_numpy(rows[:, None, None]) for layer, rows in bias.items()},
            [torch.from_numpy(rows) for rows in spare],
            part,
            (heads, tokens),
        )

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
        heads, tokens = self.shape
        number, asked_heads, size = query.shape
        bias, places = self.bias[rules], self.places
        grouped = (number, heads, asked_heads // heads, size)
        asked, answer = query.reshape(grouped), output.view(grouped)  # heads that share a key are rows of one product
        blocks = rows.view(-1, 2 * size * heads * tokens // places.shape[1])
        for first, spare in zip(range(0, number, self.part), self.spare):
            if len(self.spare) > 1:
                part = slice(first, first + self.part)
                asked, answer = query.reshape(grouped)[part], output.view(grouped)[part]
                bias, places = self.bias[rules][part], self.places[part]
            keys = copied(blocks, places).view(-1, 2 * size).index_fill_(0, spare, 0).view(-1, heads, tokens, 2 * size)
            answer.copy_(F.scaled_dot_product_attention(asked, keys[..., :size], keys[..., size:], bias, scale=scale))
