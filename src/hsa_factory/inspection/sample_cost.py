"""What the rules make of one sample: pairs of tokens that see each other, and keys that a cache holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..attention import AttentionPlan, LayerRules
from .cache_size import cache_size


if TYPE_CHECKING:
    from .model_shape import ModelShape

_PIECE = 4096  # tokens of a long message that `generate` reads at once


@dataclass(frozen=True)
class Tokens:
    """One sample alone. n is its number of tokens.

    Attributes:
        semantic_ids: (n,) the `SemanticType` of each token.
        turn_ids: (n,) the number of each token's turn; None: not known, as rules without turns allow.
        replies: (n,) bool, which tokens a model would have written one by one.
    """

    semantic_ids: np.ndarray
    turn_ids: np.ndarray | None
    replies: np.ndarray

    def __len__(self) -> int:
        return len(self.semantic_ids)

    def plan(self) -> AttentionPlan:
        """Return what the attention is told of it."""
        turns = None if self.turn_ids is None else torch.from_numpy(self.turn_ids.astype(np.int64))[None]
        return AttentionPlan.from_inputs(torch.from_numpy(self.semantic_ids.astype(np.int64))[None], turn_ids=turns)

    def forwards(self, is_hybrid: bool = False) -> np.ndarray:
        """Return how many tokens have been read after each forward: messages at once, replies token by token.

        Args:
            is_hybrid: Whether the model has layers that carry a state: then only the first message is read at once.
        """
        is_end = self.replies.copy()
        is_end[:-1] |= self.replies[1:]
        is_end[-1:] = True
        if is_hybrid:
            return np.arange(int(np.argmax(is_end)) + 1, len(self) + 1)
        ends = [0]
        for end in (np.flatnonzero(is_end) + 1).tolist():
            ends += [*range(ends[-1] + _PIECE, end, _PIECE), end]
        return np.array(ends[1:], np.int64)


@dataclass(frozen=True)
class LayerCost:
    """What a sample costs in layers with one set of rules.

    Attributes:
        pairs: How many pairs of a query and a key see each other, each token and itself included.
        held: (n,) how many keys a later token of the same turn can see, after each token.
        is_causal: Whether it is plain causal attention.
        cache: (f,) keys that the cache of one layer has room for after each forward.
    """

    pairs: int
    held: np.ndarray
    is_causal: bool
    cache: np.ndarray


def layer_cost(tokens: Tokens, rules: LayerRules, is_hybrid: bool = False) -> LayerCost:
    """Count what a sample costs in a layer. O(n log n). `is_hybrid` is that of `Tokens.forwards`."""
    plan = tokens.plan()
    last = plan.last_seen(rules)[0].numpy()
    gone = gone_from(tokens, rules)
    dead = np.cumsum(np.bincount(gone, minlength=len(tokens) + 1)[: len(tokens)])
    return LayerCost(
        pairs=count_pairs(tokens.semantic_ids, last, rules.hide),
        held=np.arange(1, len(tokens) + 1) - dead,
        is_causal=plan.is_causal(rules),
        cache=cache_size(dead, tokens.forwards(is_hybrid)),
    )


def count_pairs(semantic_ids: np.ndarray, last: np.ndarray, hide: Sequence[tuple[int, int]]) -> int:
    """Count the pairs that see each other.

    Args:
        semantic_ids: (n,).
        last: (n,) the last place that sees each key, `hide` left out.
        hide: Pairs (query type, key type) that never see each other; a token sees itself all the same.
    """
    places = np.arange(len(semantic_ids))
    pairs = int((last - places + 1).sum())
    for query_type, key_type in hide:
        upto = np.cumsum(semantic_ids == query_type)
        keys = np.flatnonzero(semantic_ids == key_type)
        pairs -= int((upto[last[keys]] - upto[keys]).sum())
    return pairs


def gone_from(tokens: Tokens, rules: LayerRules) -> np.ndarray:
    """Return after which token no later one can see each key any more, as far as is known then; n: always one can.

    What is known after a token is its turn, not that of the next one.
    """
    number, kinds = len(tokens), tokens.semantic_ids
    places = np.arange(number)
    gone = places + np.array(rules.window_reach, np.int64)[kinds]
    if rules.has_turns and tokens.turn_ids is not None:
        reach = np.array(rules.turn_reach, np.int64)[kinds]
        highest = int(tokens.turn_ids[-1]) if number else 0
        in_turns = np.searchsorted(tokens.turn_ids, np.minimum(tokens.turn_ids + reach, highest), side="right")
        gone = np.where(reach < 0, gone, np.maximum(gone, in_turns))
    gone = np.minimum(gone, places + rules.sliding_reach)
    hidden = [kind for kind in range(3) if all((query, kind) in rules.hide for query in range(3))]
    gone[np.isin(kinds, hidden)] = places[np.isin(kinds, hidden)]
    return np.minimum(gone, number)


@dataclass(frozen=True)
class SampleCost:
    """What a sample costs in a whole model with HSA, and in the same model without.

    Attributes:
        length: Its number of tokens.
        pairs: Pairs that see each other, in all softmax attention layers together.
        plain_pairs: The same without HSA.
        held_end: Keys held after its last token, mean of the layers.
        held_peak: The most ever held, mean of the layers.
        plain_held: Keys held at the end without HSA, mean of the layers.
        cache_end: Bytes of an `HSACache` after its last token, spare room included.
        cache_peak: The most ever, at the end of a forward.
        plain_cache: Bytes of transformers' own cache at the end.
        layers: Pairs of one layer, whether it is plain causal attention, and in how many layers they are the same.
        plain_layers: The same without HSA.
    """

    length: int
    pairs: int
    plain_pairs: int
    held_end: float
    held_peak: float
    plain_held: float
    cache_end: int
    cache_peak: int
    plain_cache: int
    layers: tuple[tuple[int, bool, int], ...]
    plain_layers: tuple[tuple[int, bool, int], ...]


def sample_cost(tokens: Tokens, shape: "ModelShape") -> SampleCost:
    """Count what a sample costs.

    Args:
        tokens: The sample, one token at least.
        shape: The model.
    """
    costs = {rules: layer_cost(tokens, rules, shape.is_hybrid) for rules in dict.fromkeys(shape.layer_rules.values())}
    groups = [(costs[rules], shape.count(rules)) for rules in costs]
    layers = shape.layers
    held = np.stack([cost.held * number for cost, number in groups]).sum(axis=0)
    cached = np.stack([cost.cache * number for cost, number in groups]).sum(axis=0) * shape.key_bytes
    plain = [(_causal_pairs(len(tokens), window), number) for window, number in shape.plain_windows.items()]
    kept = {window: len(tokens) if window is None else min(len(tokens), window - 1) for window in shape.plain_windows}
    plain_keys = sum(kept[window] * number for window, number in shape.plain_windows.items())
    return SampleCost(
        length=len(tokens),
        pairs=sum(cost.pairs * number for cost, number in groups),
        plain_pairs=sum(pairs * number for pairs, number in plain),
        held_end=float(held[-1]) / layers,
        held_peak=float(held.max()) / layers,
        plain_held=plain_keys / layers,
        cache_end=int(cached[-1]),
        cache_peak=int(cached.max()),
        plain_cache=plain_keys * shape.key_bytes,
        layers=tuple((cost.pairs, cost.is_causal, number) for cost, number in groups),
        plain_layers=tuple((pairs, True, number) for pairs, number in plain),
    )


def _causal_pairs(length: int, window: int | None) -> int:
    """Count the pairs of plain attention within a sliding window (None: without one)."""
    reach = length if window is None else min(window, length)
    return reach * (reach + 1) // 2 + (length - reach) * reach
