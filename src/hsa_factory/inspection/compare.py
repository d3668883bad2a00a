"""Two ways to prepare the same samples: which tokens change their type, who sees them, or whether they are trained."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from ..attention import LayerRules
from ..config import HSAConfig
from ..feedback import IGNORE_INDEX
from ..semantics import SemanticType
from .inspected_sample import InspectedSample, Part, Turn
from .sample_cost import Tokens


_REPEATS = 4
ASPECTS = ("type", "visibility", "label")


@dataclass(frozen=True)
class Side:
    """One sample, prepared in one of the two ways. n is its number of tokens.

    Attributes:
        input_ids: (n,).
        texts: Each token as text, (n,).
        types: The `SemanticType` of each token, (n,).
        last: The last place that sees each, `hide` left out, (n,).
        hide: Pairs (query type, key type) that never see each other.
        trained: (n,) bool.
        turns: Its messages, places counted from its own first token.
    """

    input_ids: np.ndarray
    texts: list[str]
    types: np.ndarray
    last: np.ndarray
    hide: tuple[tuple[int, int], ...]
    trained: np.ndarray
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
        return cls(
            np.asarray(sample.input_ids[one]),
            sample.tokens[one],
            types,
            tokens.plan().last_seen(rules)[0].numpy(),
            rules.hide,
            np.asarray(sample.labels[one]) != IGNORE_INDEX,
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
        seen_by: By how many tokens each is seen on both sides, itself included.
        aspects: What changes, of `ASPECTS`.
    """

    start: int
    tokens: list[str]
    types: tuple[int, int]
    trained: tuple[bool, bool]
    seen_by: list[tuple[int, int]]
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
            first, second = (sum(counts) / len(counts) for counts in zip(*self.seen_by))
            words.append(f"seen by {first:,.0f} → {second:,.0f} tokens")
        if "label" in self.aspects:
            words.append("trained → not trained" if self.trained[0] else "not trained → trained")
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
                    "trained": list(run.trained),
                }
                for run in self.runs
                for k, (token, seen_by) in enumerate(zip(run.tokens, run.seen_by))
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
    """

    dataset: str
    index: int
    length: int
    counts: Counter
    messages: list[MessageChange]
    obstacle: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        values: dict[str, Any] = {"dataset": self.dataset, "index": self.index, "length": self.length}
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
        return SampleChange(part.dataset, part.index, length, Counter(), [], why)

    seen = seen_by(first, second)
    is_changed = np.stack(
        [first.types != second.types, (seen != seen[:1]).any(axis=0), first.trained != second.trained]
    )
    counts = Counter({name: int(row.sum()) for name, row in zip(ASPECTS, is_changed)})
    counts["tokens"] = int(is_changed.any(axis=0).sum())
    turns = first.turns or [Turn(0, None, "tokens", 0, length)]
    offset = part.start if first.turns else 0
    messages = []
    for turn in turns:
        moved = Turn(turn.part, turn.message, turn.role, turn.start - offset, turn.stop - offset, number=turn.number)
        if runs := list(_runs(first, second, seen, is_changed, moved)):
            messages.append(MessageChange(moved, runs))
    return SampleChange(part.dataset, part.index, length, counts, messages)


def _runs(first: Side, second: Side, seen: np.ndarray, is_changed: np.ndarray, turn: Turn) -> Iterator[Run]:
    def key(place: int) -> tuple[Any, ...]:
        kinds = int(first.types[place]), int(second.types[place])
        trained = bool(first.trained[place]), bool(second.trained[place])
        return tuple(is_changed[:, place].tolist()), kinds, trained

    for (changed, kinds, trained), places in groupby(range(turn.start, turn.stop), key):
        if any(changed):
            run = list(places)
            aspects = tuple(name for name, holds in zip(ASPECTS, changed) if holds)
            texts, counts = first.texts[run[0] : run[-1] + 1], seen[:2, run].T.tolist()
            yield Run(run[0], texts, kinds, trained, [(before, after) for before, after in counts], aspects)


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


def _may_see(side: Side, key_type: int) -> np.ndarray:
    """Return which queries `hide` lets see keys of a type, (n,) bool."""
    return ~np.isin(side.types, [query for query, key in side.hide if key == key_type])
