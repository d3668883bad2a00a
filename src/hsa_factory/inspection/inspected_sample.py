"""One sample as the collator hands it to the model, and why: what every view shows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..feedback import IGNORE_INDEX
from ..semantics import SemanticType


@dataclass(frozen=True)
class Media:
    """One image, video or audio clip of a turn.

    Attributes:
        kind: ``image``, ``video`` or ``audio``.
        source: A path, or whatever the data set holds.
        start: Place of its first placeholder in the row, or of its message where it has none there.
        size: How many tokens stand for it from there on, whether they are trained or not.
    """

    kind: str
    source: Any
    start: int
    size: int = 0


@dataclass(frozen=True)
class Turn:
    """One message, the system prompt included.

    Attributes:
        part: Number of its sample in the row.
        message: Its place among the messages of the data; None if it is not one of them (a `system` column, a
            template's own system prompt).
        role: ``system``, ``user``, ``assistant``, ``observation`` or ``function``.
        start: Place of its first token in the row.
        stop: After its last token.
        cut_ids: Ids that `cutoff_len` took from its end.
        media: What it shows.
        number: Its turn: how many replies of its sample are over before it.
    """

    part: int
    message: int | None
    role: str
    start: int
    stop: int
    cut_ids: list[int] = field(default_factory=list)
    media: list[Media] = field(default_factory=list)
    number: int = 0


@dataclass(frozen=True)
class Part:
    """One sample of a row; a row that is not packed has one.

    Attributes:
        dataset: Its data set.
        index: Its number in the data set.
        start: Place of its first token in the row.
        stop: After its last token.
        cut: Tokens that `cutoff_len` took away.
        marker_cut: Whether a feedback marker that decides what is trained is among them.
        side: As of `InspectedSample`.
    """

    dataset: str
    index: int
    start: int
    stop: int
    cut: int
    marker_cut: bool
    side: str = ""


@dataclass(frozen=True)
class InspectedSample:
    """A sample or packed row, unpadded and without dummy images. n is its number of tokens.

    Attributes:
        index: Its number in the prepared data.
        dataset: Its data set; several names, joined by commas, for a row packed from several.
        input_ids: Token ids, (n).
        semantic_ids: The `SemanticType` of each token, (n).
        labels: What is trained; −100 is not, (n).
        tokens: Each token as text, (n).
        reasons: Why each token is not trained, a value of `Reason`; None where it is, (n).
        documents: Number of each token's document in a packed row; 0 is padding, (n).
        parts: The samples of the row; empty for data that were tokenized elsewhere.
        turns: Their messages in order; empty as `parts`.
        loss_weights: What the loss of each trained token is multiplied by, (n); None: by 1.
        turn_ids: The turn's number of each token, 0 at padding, (n); None where it is not known.
        side: Which of the sequences of its row it is, ``chosen`` or ``rejected``; empty: the row is one sequence.
    """

    index: int
    dataset: str
    input_ids: list[int]
    semantic_ids: list[int]
    labels: list[int]
    tokens: list[str]
    reasons: list[str | None]
    documents: list[int]
    parts: list[Part]
    turns: list[Turn]
    loss_weights: list[float] | None = None
    turn_ids: list[int] | None = None
    side: str = ""

    @property
    def name(self) -> str:
        """Its number, and its side if it has one: no other sample has both."""
        return name_of(self.index, self.side)

    @property
    def trained(self) -> int:
        """Number of tokens that the loss counts."""
        return count_trained(self.labels)

    @property
    def messages(self) -> list[int | None]:
        """For each token the place of its message among those of the data; None for padding and unknown."""
        places: list[int | None] = [None] * len(self.input_ids)
        for turn in self.turns:
            places[turn.start : turn.stop] = [turn.message] * (turn.stop - turn.start)
        return places

    def weights(self, start: int = 0, stop: int | None = None) -> list[float]:
        """The weights other than 1 of the trained tokens from `start` up to `stop` (None: the end), each once, ascending."""
        if self.loss_weights is None:
            return []
        facts = zip(self.labels[start:stop], self.loss_weights[start:stop])
        return sorted({weight for label, weight in facts if label != IGNORE_INDEX and weight != 1})

    def counts(self, start: int = 0, stop: int | None = None) -> dict[str, int]:
        """Number of tokens of each type from `start` up to `stop` (None: the end), by name."""
        return count_types(self.semantic_ids[start:stop])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: one number or text a token, then the samples and turns; `side` and `loss_weights` if there are any."""
        side = {"side": self.side} if self.side else {}
        weights = {} if self.loss_weights is None else {"loss_weights": self.loss_weights}
        return {
            "index": self.index,
            "dataset": self.dataset,
            **side,
            "input_ids": self.input_ids,
            "semantic_ids": self.semantic_ids,
            "labels": self.labels,
            "tokens": self.tokens,
            "reasons": self.reasons,
            **weights,
            "messages": self.messages,
            "turn_ids": self.turn_ids,
            "samples": [
                {
                    "dataset": part.dataset,
                    "index": part.index,
                    "start": part.start,
                    "stop": part.stop,
                    "truncated": part.cut,
                    "marker_truncated": part.marker_cut,
                }
                for part in self.parts
            ],
            "turns": [
                {
                    "sample": turn.part,
                    "message": turn.message,
                    "role": turn.role,
                    "turn": turn.number,
                    "start": turn.start,
                    "stop": turn.stop,
                    "types": self.counts(turn.start, turn.stop),
                    "trained": count_trained(self.labels[turn.start : turn.stop]),
                    "truncated": len(turn.cut_ids),
                }
                for turn in self.turns
            ],
        }


@dataclass(frozen=True)
class RowSummary:
    """The numbers of one row, for an overview of all.

    Attributes:
        index: Its number in the prepared data.
        dataset: Its data set, or several.
        length: Number of tokens.
        types: Number of tokens of each `SemanticType`.
        trained: Number of tokens that the loss counts.
        cut: Tokens that `cutoff_len` took away.
        marker_cut: Whether a feedback marker that decides what is trained is among them.
        side: As of `InspectedSample`.
    """

    index: int
    dataset: str
    length: int
    types: tuple[int, int, int]
    trained: int
    cut: int
    marker_cut: bool
    side: str = ""


def name_of(index: int, side: str) -> str:
    """Return what a sample is called: ``3``, or ``3 chosen``."""
    return f"{index} {side}".rstrip()


def number_tokens(turns: Sequence[Turn], length: int) -> list[int]:
    """Return the number of the turn that each of `length` tokens stands in; 0 where no message is."""
    numbers = [0] * length
    for turn in turns:
        numbers[turn.start : turn.stop] = [turn.number] * (turn.stop - turn.start)
    return numbers


def count_types(semantic_ids: Sequence[int]) -> dict[str, int]:
    """Count the tokens of each type, by name."""
    counts = Counter(semantic_ids)
    return {member.name: counts[int(member)] for member in SemanticType}


def count_trained(labels: Sequence[int]) -> int:
    """Count the tokens that the loss counts."""
    return sum(label != IGNORE_INDEX for label in labels)
