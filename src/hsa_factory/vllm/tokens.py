"""The types of one request's tokens, from its prompt to its last generated one: the same in scheduler and workers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..attention.layer_rules import LayerRules
from ..models.cache.tagger import ConstantTagger, Tagger
from .reach import last_visible, reach_of_new
from .types import PromptTypes


_AHEAD = 128  # tokens that are noted before they come, where all that is generated has one type


class Retyped(NamedTuple):
    """A change of types seen, as a closing tag brings it.

    Attributes:
        at: Position of the token that brought it: in force for queries from there on.
        start: The first token changed.
        stop: After the last.
        semantic_type: What they are since.
    """

    at: int
    start: int
    stop: int
    semantic_type: int


class TokenTypes:
    """Types, turns and reach of the tokens of one request; what is generated is typed as it comes.

    Args:
        prompt: What the request says of its prompt.
        tagger: Types the tokens after it.
        rules: What holds in the layers, each once.
        output_ids: What was generated, a list that vLLM adds to.

    Attributes:
        events: The changes of types so far.
        held_from: The first token whose type may change yet; the number of tokens if there is none.
    """

    def __init__(
        self, prompt: PromptTypes, tagger: Tagger, rules: Sequence[LayerRules], output_ids: Sequence[int] = ()
    ) -> None:
        self.rules, self.tagger, self._output_ids = tuple(rules), tagger, output_ids
        self.prompt_length = self._length = self._ready = len(prompt)
        self._kind = tagger.semantic_type if isinstance(tagger, ConstantTagger) else None
        self._first = _Growing(prompt.types)  # as each was typed when it came
        self._types = _Growing(prompt.types)
        self._turns = None if prompt.turns is None else _Growing(prompt.turns)
        self._last = _Growing(last_visible(prompt.types, prompt.turns, self.rules))
        self._reach = reach_of_new(self.rules)
        self.events: list[Retyped] = []
        self.held_from = self._length

    def __len__(self) -> int:
        return self._length

    @property
    def types(self) -> NDArray[np.uint8]:
        """(L,), in force now."""
        return self._types.room[: self._length]

    @property
    def known_types(self) -> NDArray[np.uint8]:
        """(L or more,), as `types`, with those of tokens that are known before they come, as they will have one type."""
        return self._types.room[: self._ready]

    @property
    def first_types(self) -> NDArray[np.uint8]:
        """(L,), as each token was typed when it came."""
        return self._first.room[: self._length]

    @property
    def turns(self) -> NDArray[np.int64] | None:
        """(L,) turn numbers; None: the rules have no turns."""
        return None if self._turns is None else self._turns.room[: self._length]

    @property
    def last(self) -> NDArray[np.int64]:
        """(L,), the last position that may have seen, or may yet see, each token; unsettled tokens are held besides."""
        return self._last.room[: self._length]

    def read(self, stop: int | None = None) -> None:
        """Take in those generated tokens that are new.

        Args:
            stop: How many tokens of the request to know, the prompt's included. None: all.
        """
        number = self.prompt_length + len(self._output_ids)
        if stop is not None and stop < number:
            number = stop
        if number <= self._length:
            return
        if self._kind is not None:
            if number > self._ready:
                self._write(number + _AHEAD, self._kind)
            self._length = self.held_from = number
            return
        for place in range(self._length - self.prompt_length, number - self.prompt_length):
            self._add(self._output_ids[place])

    def _write(self, stop: int, kind: int) -> None:
        """Note that tokens up to a position have a type, from the first of which none is noted yet."""
        start, self._ready = self._ready, stop
        for values in (self._first, self._types):
            values.write(start, stop, kind)
        if self._turns is not None:
            self._turns.write(start, stop, self._turns.room[start - 1] if start else 0)
        self._last.write(start, stop, np.arange(start, stop) + self._reach[kind])

    def _add(self, token_id: int) -> None:
        at = self._length
        self._write(at + 1, int(self.tagger.tag(torch.tensor([[token_id]]))[0, 0]))
        self._length = self.held_from = at + 1
        for change in self.tagger.settled():
            self._retype(at, self.prompt_length + change.start, self.prompt_length + change.stop, change.semantic_type)
        unsettled = self.tagger.unsettled()
        if unsettled is not None:
            self.held_from = self.prompt_length + unsettled[0]

    def _retype(self, at: int, start: int, stop: int, semantic_type: int) -> None:
        """Change types. A token that only comes now has the new one from the beginning."""
        if stop > at:
            self._first.room[at] = semantic_type
        self._types.room[start:stop] = semantic_type
        before = np.minimum(self.last[start:stop], at - 1)  # by what it was, it may have been seen until then
        self._last.room[start:stop] = np.maximum(last_visible(self.types, self.turns, self.rules, start, stop), before)
        if start < min(stop, at):
            self.events.append(Retyped(at, start, min(stop, at), semantic_type))

    def types_at(self, position: int) -> NDArray[np.uint8]:
        """Return (L,) the types in force for a query, of all tokens known; a query recomputed sees what it saw first."""
        if not self.events or self.events[-1].at <= position:
            return self.types
        types = self.first_types.copy()
        for event in self.events:
            if event.at <= position:
                types[event.start : event.stop] = event.semantic_type
        return types

    def pieces(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Cut queries [start, stop) where types changed, so that `types_at` holds in each piece."""
        cuts = sorted({event.at for event in self.events if start < event.at < stop})
        return list(zip([start, *cuts], [*cuts, stop]))


class _Growing:
    """An array that is written to, part after part."""

    def __init__(self, values: NDArray) -> None:
        self.room = np.concatenate([values, np.zeros(2 * _AHEAD, values.dtype)])

    def write(self, start: int, stop: int, values: Any) -> None:
        if stop > len(self.room):
            self.room = np.concatenate([self.room, np.zeros(stop, self.room.dtype)])
        self.room[start:stop] = values
