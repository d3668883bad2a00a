"""Types and turns of the tokens of all running requests, on the device: a row for each request, written as tokens come."""

import weakref
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..tokens import TokenTypes


_ROWS = 16  # to begin with; doubled when they are used up


class TypeTable:
    """Keeps on the device what a kernel must know of tokens.

    Row 0 is that of a dry run, all GLOBAL and of one turn.

    Args:
        length: The most tokens of a request.
        device: Where the kernel runs.
        has_turns: Whether turn numbers are needed.

    Attributes:
        types: (rows, length) uint8.
        turns: (rows, length) int64; None: not needed.
    """

    def __init__(self, length: int, device: torch.device, has_turns: bool) -> None:
        self.length, self.device = length, device
        self.types = torch.zeros(_ROWS, length, dtype=torch.uint8, device=device)
        self.turns = torch.zeros(_ROWS, length, dtype=torch.int64, device=device) if has_turns else None
        self._free = list(range(_ROWS - 1, 0, -1))
        self._owned: dict[int, _Owned] = {}
        self._lent: list[int] = []

    def rows_for(self, asked: Sequence[tuple[TokenTypes | None, int]]) -> list[int]:
        """Write what is new, and return a row for each of the queries' requests; those of the former call may change.

        Args:
            asked: A request and the position of its first query, with which its types are those in force. None: a dry run.
        """
        self._take_back()
        writes = _Writes()
        rows = [0 if tokens is None else self._row_for(tokens, position, writes) for tokens, position in asked]
        self._write(writes)
        return rows

    def _row_for(self, tokens: TokenTypes, position: int, writes: "_Writes") -> int:
        number = min(len(tokens), self.length)
        if tokens.events and tokens.events[-1].at > position:  # recomputed: it sees what it saw first
            row = self._new_row()
            self._lent.append(row)
            writes.add(row, 0, tokens.types_at(position)[:number], tokens.turns)
            return row
        owned = self._owned.get(id(tokens))
        if owned is None:
            owned = self._owned[id(tokens)] = _Owned(weakref.ref(tokens), self._new_row())
        if owned.events != len(tokens.events):
            owned.known, owned.events = min(owned.known, *(event.start for event in tokens.events)), len(tokens.events)
        writes.add(owned.row, owned.known, tokens.types[owned.known : number], tokens.turns)
        owned.known = max(owned.known, number)
        return owned.row

    def _take_back(self) -> None:
        """Let rows be used again: of requests that are gone, and those lent for one call."""
        for key, owned in list(self._owned.items()):
            if owned.tokens() is None:
                self._free.append(self._owned.pop(key).row)
        self._free += self._lent
        self._lent = []

    def _new_row(self) -> int:
        if not self._free:
            rows = len(self.types)
            self._free = list(range(2 * rows - 1, rows - 1, -1))
            self.types = torch.cat([self.types, torch.zeros_like(self.types)])
            self.turns = None if self.turns is None else torch.cat([self.turns, torch.zeros_like(self.turns)])
        return self._free.pop()

    def _write(self, writes: "_Writes") -> None:
        """Copy all that is new at once: a copy for each request would cost more than the kernel."""
        if not writes.types:
            return
        places = np.concatenate([row * self.length + np.arange(start, stop) for row, start, stop in writes.spans])
        on_device = torch.from_numpy(places).to(self.device)
        self.types.view(-1)[on_device] = torch.from_numpy(np.concatenate(writes.types)).to(self.device)
        if self.turns is not None:
            turns = np.concatenate(writes.turns)
            self.turns.view(-1)[on_device] = torch.from_numpy(turns).to(self.device)


class _Owned:
    """The row of a request.

    Attributes:
        tokens: The request's.
        row: Which row it is.
        known: How many tokens are written.
        events: Of how many changes of types it knows.
    """

    def __init__(self, tokens: "weakref.ref[TokenTypes]", row: int) -> None:
        self.tokens, self.row, self.known, self.events = tokens, row, 0, 0


class _Writes:
    """What is to be copied to the device."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, int, int]] = []
        self.types: list[NDArray[np.uint8]] = []
        self.turns: list[NDArray[np.int64]] = []

    def add(self, row: int, start: int, types: NDArray[np.uint8], turns: NDArray[np.int64] | None) -> None:
        if not len(types):
            return
        stop = start + len(types)
        self.spans.append((row, start, stop))
        self.types.append(types)
        self.turns.append(np.zeros(len(types), np.int64) if turns is None else turns[start:stop])
