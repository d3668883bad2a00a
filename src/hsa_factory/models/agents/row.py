"""One episode of a batch: its history, and how much of it the model has read."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from .report import RowReport, Usage, mean


if TYPE_CHECKING:
    from ...training.history import History
    from .talk import Talk


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
        replies: How often it has answered.
        roles: Of the messages so far.
        talk: Its chat messages; None: it is given texts.
        header: What the template writes before its next reply; None: as in all rows.
        stop_id: Token that ended the reply before, if it was not read yet.
        images: What the processor has made of all its images; empty: there are none. Once they are read, their grids only.
        usage: What the cache has held for it.
        reread: Tokens that were read, and are to be read again.
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
    talk: "Talk | None" = None
    header: list[int] | None = None
    stop_id: int | None = None
    images: dict[str, torch.Tensor] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    reread: int = 0

    @property
    def fed(self) -> int:
        """How many tokens the model has read for it."""
        return self.reread + self.read

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

    def follow(self, history: "History") -> None:
        """Take over what the template makes of its conversation."""
        self.ids, self.types, self.turns = list(history.ids), list(history.types), list(history.turns)
        self.roles, self.turn, self.header = list(history.roles), history.next_turn, history.header
        self.stop_id = None

    def begin_anew(self) -> "Row":
        """Return it as one of which the model has read nothing."""
        return replace(self, read=0, reread=self.fed)

    def save(self) -> dict[str, Any]:
        """Return what `go_back` goes back to."""
        values = {name: getattr(self, name) for name in ("has_news", "turn", "replies", "stop_id")}
        lists = {name: list(getattr(self, name)) for name in ("ids", "types", "turns", "roles")}
        return {**values, **lists, "random": self.source.getstate()}

    def go_back(self, saved: Mapping[str, Any]) -> None:
        """Be as it was, but for what was read: nothing is held of it any more."""
        values = dict(saved)
        self.source.setstate(values.pop("random"))
        vars(self).update(values)
        self.read, self.reread = 0, self.fed
        self.usage.held = self.usage.visible = 0

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
            self.fed,
            self.replies,
        )
