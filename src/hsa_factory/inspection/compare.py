"""Two ways to prepare the same samples: which tokens change their type, who sees them, how well, or how they are trained."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from ..attention import LayerRules
from ..attention.api import FADED
from ..config import HSAConfig
from ..feedback import IGNORE_INDEX
from ..semantics import SemanticType
from .inspected_sample import InspectedSample, Part, Turn, name_of
from .sample_cost import Tokens


_REPEATS = 4
ASPECTS = ("type", "visibility", "decay", "label", "weight")


@dataclass(frozen=True)
class Side:
    """One sample, prepared in one of the two ways. n is its number of tokens.

    Attributes:
        input_ids: (n,).
        texts: Each token as text, (n,).
        types: The `SemanticType` of each token, (n,).
        last: The last place that sees each, `hide` left out, (n,).
        hide: Pairs (query type, key type) that never see each other.
        decays: Of each type: what a key's logit loses a token of distance.
        trained: (n,) bool.
        weights: What the loss of each token is multiplied by, (n,); 0 where it is not trained.
        turns: Its messages, places counted from its own first token.
    """

    input_ids: np.ndarray
    texts: list[str]
    types: np.ndarray
    last: np.ndarray
    hide: tuple[tuple[int, int], ...]
    decays: tuple[float, ...]
    trained: np.ndarray
    weights: np.ndarray
    turns: list[Turn]

    @classmethod
    def of(cls, sample: InspectedSample, part: int | None, config: HSAConfig | None) -> "Side":
        """Take a sample out of its row.

        Args:
            sample: The row.
            part: The sample's number in it; None: the row is all that is known.
            config: The rules; None: plain causal attention.

        Raises:
            ValueError: If the rules need turn numbers that are not known.
        """
        one = slice(None) if part is None else slice(sample.parts[part].start, sample.parts[part].stop)
        rules = LayerRules.plain() if config is None else LayerRules.of(config)
        if rules.has_turns and sample.turn_ids is None:
            raise ValueError(
                f"row {sample.index} of the tokenized data has no turn numbers, which the rules need: tokenize the data "
                "anew (remove tokenized_path)."
            )
        types = np.asarray(sample.semantic_ids[one], np.int8)
        numbers = np.asarray(sample.turn_ids[one], np.int32) if rules.has_turns and sample.turn_ids else None
        tokens = Tokens(types, numbers, np.zeros(len(types), np.bool_))
        trained = np.asarray(sample.labels[one]) != IGNORE_INDEX
        weights = 1.0 if sample.loss_weights is None else np.asarray(sample.loss_weights[one])
        return cls(
            np.asarray(sample.input_ids[one]),
            sample.tokens[one],
            types,
            tokens.plan().last_seen(rules)[0].numpy(),
            rules.hide,
            rules.decays,
            trained,
            trained * weights,
            [turn for turn in sample.turns if part is None or turn.part == part],
        )


@dataclass(frozen=True)
class Run:
    """Consecutive tokens of a message that change in the same way.

    Attributes:
        start: Place of the first, in the sample.
        tokens: Their texts.
        types: Their type on both sides.
        trained: Whether they are trained on both sides.
        weights: What their loss is multiplied by on both sides; 0 where they are not trained.
        decays: What their logit loses a token of distance on both sides.
        seen_by: By how many tokens each is seen on both sides, itself included.
        in_name_only: By how many of these it is seen in name only, for its decay.
        aspects: What changes, of `ASPECTS`.
    """

    start: int
    tokens: list[str]
    types: tuple[int, int]
    trained: tuple[bool, bool]
    weights: tuple[float, float]
    decays: tuple[float, float]
    seen_by: list[tuple[int, int]]
    in_name_only: list[tuple[int, int]]
    aspects: tuple[str, ...]

    @property
    def text(self) -> str:
        """The tokens' text; a longer run of one token, such as image placeholders, is folded."""
        pieces = []
        for token, repeated in groupby(self.tokens):
            number = len(list(repeated))
            pieces.append(f"{token}×{number}" if number > _REPEATS else token * number)
        return "".join(pieces)

    def describe(self) -> str:
        """Say what changes."""
        before, after = (SemanticType(kind).name for kind in self.types)
        words = [f"{before} → {after}" if before != after else before]
        if "visibility" in self.aspects:
            words.append(f"seen by {_means(self.seen_by)} tokens")
        if "decay" in self.aspects:
            words.append(f"decay {self.decays[0]:g} → {self.decays[1]:g}")
        if any(before != after for before, after in self.in_name_only):
            words.append(f"in name only by {_means(self.in_name_only)}")
        if "label" in self.aspects:
            words.append("trained → not trained" if self.trained[0] else "not trained → trained")
        if "weight" in self.aspects:
            words.append(f"weight {self.weights[0]:g} → {self.weights[1]:g}")
        return ", ".join(words)


@dataclass(frozen=True)
class MessageChange:
    """A message in which something changes.

    Attributes:
        turn: The message.
        runs: What changes, in order.
    """

    turn: Turn
    runs: list[Run]

    @property
    def changed(self) -> int:
        """How many of its tokens change."""
        return sum(len(run.tokens) for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, one mapping for each token that changes."""
        return {
            "message": self.turn.message,
            "role": self.turn.role,
            "turn": self.turn.number,
            "start": self.turn.start,
            "stop": self.turn.stop,
            "tokens": [
                {
                    "place": run.start + k,
                    "token": token,
                    "changes": list(run.aspects),
                    "types": [SemanticType(kind).name for kind in run.types],
                    "seen_by": list(seen_by),
                    "in_name_only": list(faded),
                    "decays": list(run.decays),
                    "trained": list(run.trained),
                    "weights": list(run.weights),
                }
                for run in self.runs
                for k, (token, seen_by, faded) in enumerate(zip(run.tokens, run.seen_by, run.in_name_only))
            ],
        }


@dataclass(frozen=True)
class SampleChange:
    """What changes in one sample.

    Attributes:
        dataset: Its data set.
        index: Its number in it.
        length: Its tokens.
        counts: How many tokens change, by aspect, and of all.
        messages: The messages with changes.
        obstacle: Why it was not compared; empty if it was.
        side: As of `InspectedSample`.
    """

    dataset: str
    index: int
    length: int
    counts: Counter
    messages: list[MessageChange]
    obstacle: str = ""
    side: str = ""

    @property
    def name(self) -> str:
        """Its number, and its side if it has one."""
        return name_of(self.index, self.side)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        values: dict[str, Any] = {"dataset": self.dataset, "index": self.index, "length": self.length}
        if self.side:
            values["side"] = self.side
        if self.obstacle:
            return {**values, "not_compared": self.obstacle}
        changed = {name: self.counts[name] for name in ("tokens", *ASPECTS)}
        return {**values, "changed": changed, "messages": [message.to_dict() for message in self.messages]}


def compare(part: Part, first: Side, second: Side) -> SampleChange:
    """Find what changes in a sample.

    Args:
        part: The sample.
        first: It, prepared in one way.
        second: In the other.
    """
    length = len(first.input_ids)
    if not np.array_equal(first.input_ids, second.input_ids):
        why = (
            "its token ids differ: tokenizer (feedback adds a token), template, cutoff_len and media must be the same"
        )
        return SampleChange(part.dataset, part.index, length, Counter(), [], why, part.side)

    seen = seen_by(first, second)
    decays = np.stack([np.asarray(side.decays)[side.types] for side in (first, second)])
    is_changed = np.stack(
        [
            first.types != second.types,
            (seen != seen[:1]).any(axis=0),
            (decays[0] != decays[1]) & (seen[2] > 1),  # there is no distance to oneself
            first.trained != second.trained,
            first.trained & second.trained & (first.weights != second.weights),
        ]
    )
    faded = np.stack([seen_in_name_only(side) for side in (first, second)])
    counts = Counter({name: int(row.sum()) for name, row in zip(ASPECTS, is_changed)})
    counts["tokens"] = int(is_changed.any(axis=0).sum())
    turns = first.turns or [Turn(0, None, "tokens", 0, length)]
    offset = part.start if first.turns else 0
    messages = []
    for turn in turns:
        moved = Turn(turn.part, turn.message, turn.role, turn.start - offset, turn.stop - offset, number=turn.number)
        if runs := list(_runs(first, second, np.concatenate([seen[:2], faded]), is_changed, moved)):
            messages.append(MessageChange(moved, runs))
    return SampleChange(part.dataset, part.index, length, counts, messages, side=part.side)


def _runs(first: Side, second: Side, counts: np.ndarray, is_changed: np.ndarray, turn: Turn) -> Iterator[Run]:
    """Yield what changes in a message. `counts`: (4, n), seen by on both sides, and in name only on both."""

    def facts(place: int) -> tuple[Any, ...]:
        kinds = int(first.types[place]), int(second.types[place])
        trained = bool(first.trained[place]), bool(second.trained[place])
        return kinds, trained, (float(first.weights[place]), float(second.weights[place]))

    def key(place: int) -> tuple[Any, ...]:
        return tuple(is_changed[:, place].tolist()), facts(place)

    for (changed, (kinds, trained, weights)), places in groupby(range(turn.start, turn.stop), key):
        if any(changed):
            run = list(places)
            aspects = tuple(name for name, holds in zip(ASPECTS, changed) if holds)
            decays = first.decays[kinds[0]], second.decays[kinds[1]]
            before, after, faded_before, faded_after = counts[:, run].tolist()
            yield Run(
                run[0],
                first.texts[run[0] : run[-1] + 1],
                kinds,
                trained,
                weights,
                decays,
                list(zip(before, after)),
                list(zip(faded_before, faded_after)),
                aspects,
            )


def seen_by(first: Side, second: Side) -> np.ndarray:
    """Count the tokens that see each key, itself included, on either side and on both.

    Returns:
        (3, n): on the first side, on the second, and those tokens that see it on both. Where the three are equal, the same
        tokens see it.
    """
    places, counts = np.arange(len(first.types)), np.ones((3, len(first.types)), np.int64)
    for kinds in {(int(a), int(b)) for a, b in zip(first.types, second.types)}:
        keys = np.flatnonzero((first.types == kinds[0]) & (second.types == kinds[1]))
        allowed = [_may_see(side, kind) for side, kind in zip((first, second), kinds)]
        lasts = [first.last[keys], second.last[keys]]
        for row, (is_query, last) in enumerate([*zip(allowed, lasts), (allowed[0] & allowed[1], np.minimum(*lasts))]):
            upto = np.cumsum(is_query)
            counts[row, keys] += upto[last] - upto[places[keys]]
    return counts


def seen_in_name_only(side: Side) -> np.ndarray:
    """Count the tokens that see each key from so far that its decay leaves nothing of it, (n,)."""
    places, counts = np.arange(len(side.types)), np.zeros(len(side.types), np.int64)
    for kind, decay in enumerate(side.decays):
        if decay > 0:
            keys = np.flatnonzero(side.types == kind)
            upto = np.cumsum(_may_see(side, kind))
            near = np.minimum(side.last[keys], places[keys] + int(FADED / decay))
            counts[keys] = upto[side.last[keys]] - upto[near]
    return counts


def _means(counts: list[tuple[int, int]]) -> str:
    first, second = (sum(side) / len(side) for side in zip(*counts))
    return f"{first:,.0f} → {second:,.0f}"


def _may_see(side: Side, key_type: int) -> np.ndarray:
    """Return which queries `hide` lets see keys of a type, (n,) bool."""
    return ~np.isin(side.types, [query for query, key in side.hide if key == key_type])
