"""One episode of a batch: its history, and how much of it the model has read."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .report import RowReport, Usage, mean


@dataclass
class Row:
    """What is known of one row.

    Attributes:
        number: Its place in the batch.
        source: Its random numbers.
        is_live: Whether it plays.
        has_news: Whether something was appended since its last reply.
        ids: Tokens of its history, and for each its type and turn.
        read: How many of them the model has read.
        turn: Of what comes next, how many replies are over.
        roles: Of the messages so far.
        media: Images of tokens that were not read yet.
    """

    number: int
    source: random.Random
    is_live: bool = True
    has_news: bool = False
    ids: list[int] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    read: int = 0
    turn: int = 0
    replies: int = 0
    roles: list[str] = field(default_factory=list)
    media: list[dict[str, Any]] = field(default_factory=list)
    stop_id: int | None = None  # that ended the reply before, if it was not read yet
    usage: Usage = field(default_factory=Usage)

    def observe(self, ids: Sequence[int], types: Sequence[int], role: str) -> None:
        """Add what the model is to read; after a reply, unless that goes on, it is of the next turn."""
        if self.roles and self.roles[-1] == "assistant" != role:
            self.turn += 1
        if self.stop_id is not None and ids[0] == self.stop_id:  # some templates end a reply by the next one's header
            self._take_back()
        self.add(ids, types)
        self.roles.append(role)
        self.has_news, self.stop_id = True, None

    def answer(self, ids: Sequence[int], types: Sequence[int]) -> None:
        """Add a reply, with what stands after it."""
        self.add(ids, types)
        self.roles.append("assistant")
        self.replies, self.has_news = self.replies + 1, False

    def add(self, ids: Sequence[int], types: Sequence[int]) -> None:
        """Add tokens of this turn."""
        self.ids += ids
        self.types += types
        self.turns += [self.turn] * len(ids)

    def _take_back(self) -> None:
        del self.ids[-1], self.types[-1], self.turns[-1]

    def report(self) -> RowReport:
        """Return its numbers."""
        usage = self.usage
        return RowReport(
            self.number,
            self.is_live,
            usage.held,
            usage.visible,
            usage.held - usage.visible,
            mean(usage.held_sum, usage.forwards),
            usage.held_peak,
            mean(usage.visible_sum, usage.forwards),
            usage.visible_peak,
            len(self.ids),
            self.read,
            self.replies,
        )
