"""What is known of all tokens that a cache has seen, those included whose keys are gone."""

from collections.abc import Callable, Sequence

import torch

from ...semantics import SemanticType
from .key_table import Keys, KeyTable
from .tagger import Settled


_PIECES = 64  # of tokens seen, before they are joined


class SeenTokens:
    """Positions and types of all tokens of a sequence, kept in pieces until somebody asks for them.

    Attributes:
        ids: (B, …), the first of the tokens, as far as they were noted; None: none was.
    """

    def __init__(self) -> None:
        self._pieces: tuple[Keys, ...] = ()
        self._length = 0
        self.ids: torch.Tensor | None = None

    def __len__(self) -> int:
        return self._length

    @property
    def rows(self) -> int:
        """B; 0 before the first token."""
        return self._pieces[0].positions.shape[0] if self._pieces else 0

    @property
    def keys(self) -> Keys:
        """Of all tokens seen, one at least."""
        if len(self._pieces) > 1:
            self._pieces = (Keys(*(torch.cat(pieces, dim=1) for pieces in zip(*self._pieces))),)
        return self._pieces[0]

    @property
    def last_positions(self) -> torch.Tensor:
        """(B, 1) int64, of each row's last token, one at least."""
        return self._pieces[-1].positions[:, -1:]

    def next_keys(self, semantic_ids: torch.Tensor, is_real: torch.Tensor | None) -> Keys:
        """Return what is known of the next tokens, of types (B, Q). `is_real`: (B, Q) bool; None: all are."""
        if is_real is None and semantic_ids.shape[1] == 1 and self._pieces:  # every step of decoding
            return Keys(self.last_positions + 1, semantic_ids, torch.ones_like(semantic_ids, dtype=torch.bool))
        is_real = torch.ones_like(semantic_ids, dtype=torch.bool) if is_real is None else is_real
        before: torch.Tensor | int = self.last_positions if self._pieces else -1
        return Keys(before + is_real.long().cumsum(1), semantic_ids, is_real)

    def append(self, keys: Keys) -> None:
        """Add tokens."""
        if len(self._pieces) >= _PIECES:
            self._pieces = (self.keys,)
        self._pieces = (*self._pieces, keys)
        self._length += keys.positions.shape[1]

    def change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Reorder, repeat, select or shorten rows, by a function on a tensor (B, seen)."""
        if len(self):
            self._pieces = (self.keys.map(change),)
            self._length = self._pieces[0].positions.shape[1]
        if self.ids is not None:
            self.ids = change(self.ids)

    def retype(self, changes: Sequence[Settled]) -> None:
        """Change the types of tokens."""
        semantic_ids = self.keys.semantic_ids.clone()
        for change in changes:
            semantic_ids[change.row, change.start : change.stop] = change.semantic_type
        self._pieces = (self.keys._replace(semantic_ids=semantic_ids),)

    def changes_to(self, semantic_ids: torch.Tensor) -> list[Settled]:
        """Return what all types, (B, seen + …), change of the tokens seen."""
        if not len(self):
            return []
        number, changes = len(self), []
        differs = (self.keys.semantic_ids != semantic_ids[:, :number]) & self.keys.is_real
        for row in differs.any(dim=1).nonzero().flatten().tolist():
            wanted = torch.where(differs[row], semantic_ids[row, :number], -1)
            values, lengths = wanted.unique_consecutive(return_counts=True)
            stops = lengths.cumsum(0).tolist()
            changes += [
                Settled(row, stop - length, stop, value)
                for value, length, stop in zip(values.tolist(), lengths.tolist(), stops)
                if value >= 0
            ]
        return changes

    def check_ids(self, input_ids: torch.Tensor) -> None:
        """Check that a sequence, (B, L), begins with the tokens noted.

        Raises:
            ValueError: If it is another one.
        """
        if self.ids is None or not len(self):
            return
        number = min(self.ids.shape[1], len(self))
        differs = (input_ids[:, :number] != self.ids[:, :number]) & self.keys.is_real[:, :number]
        if bool(differs.any()):
            row, place = differs.nonzero()[0].tolist()
            raise ValueError(
                f"input_ids differs from what this HSACache has seen, first at token {place} of row {row}: pass the tokens "
                "that went in and came out, not their text encoded anew; for another conversation make another cache."
            )


def retype(changes: Sequence[Settled], seen: SeenTokens, tables: Sequence[KeyTable]) -> None:
    """Change types of tokens seen: all tables are asked, for all changes, before any of them changes.

    Raises:
        ValueError: If a key is gone that could be seen with the new type. Then nothing has changed.
    """
    if not changes:
        return
    keys, possible = seen.keys, []
    for row, start, stop, semantic_type in changes:
        positions = keys.positions[row, start:stop][keys.is_real[row, start:stop]]
        if not len(positions):
            continue
        possible.append((row, positions, semantic_type))
        next_position = keys.positions[row, -1] + 1
        if not all(table.can_retype(row, positions, semantic_type, next_position) for table in tables):
            raise ValueError(
                f"Tokens {start} to {stop} of row {row} cannot become {SemanticType(semantic_type).name} any more: their "
                "keys are gone."
            )
    for table in tables:
        for change in possible:
            table.retype(*change)
    seen.retype(changes)
