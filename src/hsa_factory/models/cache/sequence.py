"""What is known of all tokens that a cache has seen, those included whose keys are gone."""

from collections.abc import Callable, Sequence

import torch

from ...semantics import SemanticType
from .key_table import Keys, KeyTable, clear
from .tagger import Settled
from .turns import settle_turns


_PIECES = 64  # of tokens seen, before they are joined


class SeenTokens:
    """Positions and types of all tokens of a sequence, kept in pieces until somebody asks for them.

    A token has two positions: its place among the real tokens of its row, which is HSA's distance (`Keys.positions`), and the
    one (M-RoPE: three) of the model's rotary embedding. They part where there are images, and where padding was counted.

    Attributes:
        ids: (B, …), the first of the tokens, as far as they were noted; None: none was.
    """

    def __init__(self) -> None:
        self._pieces: tuple[Keys, ...] = ()
        self._rope_ends: tuple[torch.Tensor, ...] = ()  # (B, …) int64, the rotary position that follows each token
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
        self._join()
        return self._pieces[0]

    @property
    def last_positions(self) -> torch.Tensor:
        """(B, 1) int64, of each row's last token, one at least."""
        return self._pieces[-1].positions[:, -1:]

    @property
    def next_rope_positions(self) -> torch.Tensor | None:
        """(B, 1) int64, the rotary position at which each row goes on; None before the first token."""
        return self._rope_ends[-1][:, -1:] if self._rope_ends else None

    def count_on(self, is_real: torch.Tensor) -> torch.Tensor:
        """Return the rotary positions of text that goes on, (B, Q). `is_real`: (B, Q) bool; padding is not counted."""
        places, following = is_real.long().cumsum(dim=1) - 1, self.next_rope_positions
        return (places if following is None else places + following).clamp(min=0)

    @property
    def last_turns(self) -> torch.Tensor | None:
        """(B, 1) int64, the turn of each row's last token; None: no token was seen, or turns are not known."""
        turns = self._pieces[-1].turns if self._pieces else None
        return None if turns is None else turns[:, -1:]

    def next_keys(
        self, semantic_ids: torch.Tensor, is_real: torch.Tensor | None, turn_ids: torch.Tensor | None = None
    ) -> Keys:
        """Return what is known of the next tokens.

        Args:
            semantic_ids: Their types, (B, Q).
            is_real: (B, Q) bool; None: all are.
            turn_ids: (B, Q) integers; None: that of the last token goes on, where turns are known.

        Raises:
            ValueError: If turn numbers fall.
        """
        turns = last = self.last_turns
        if turn_ids is not None:
            turns = settle_turns(turn_ids, is_real, last, len(self))
        elif last is not None:
            turns = last.expand_as(semantic_ids)
        if is_real is None and semantic_ids.shape[1] == 1 and self._pieces:  # every step of decoding
            return Keys(self.last_positions + 1, semantic_ids, torch.ones_like(semantic_ids, dtype=torch.bool), turns)
        is_real = torch.ones_like(semantic_ids, dtype=torch.bool) if is_real is None else is_real
        before: torch.Tensor | int = self.last_positions if self._pieces else -1
        return Keys(before + is_real.long().cumsum(1), semantic_ids, is_real, turns)

    def append(self, keys: Keys, rope_positions: torch.Tensor | None = None, has_padding: bool = True) -> None:
        """Add tokens.

        Args:
            keys: B rows of Q tokens.
            rope_positions: Their rotary positions, (B, Q) or (1, Q), of M-RoPE the axis by which text goes on; None: as
                models count that are given none, padding too.
            has_padding: Whether any of them may be padding.
        """
        rows, number = keys.positions.shape
        if rope_positions is None:
            rope_positions = torch.arange(len(self), len(self) + number, device=keys.positions.device)[None]
        ends = rope_positions.to(keys.positions).expand(rows, -1) + 1
        if has_padding:
            ends = _ends_of_real(ends, keys.is_real, self.next_rope_positions)
        if len(self._pieces) >= _PIECES:
            self._join()
        self._pieces, self._rope_ends = (*self._pieces, keys), (*self._rope_ends, ends)
        self._length += number

    def _join(self) -> None:
        if len(self._pieces) > 1:
            self._pieces = (Keys.join(self._pieces),)
            self._rope_ends = (torch.cat(self._rope_ends, dim=1),)

    def change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Reorder, repeat, select or shorten rows, by a function on a tensor (B, seen)."""
        if len(self):
            self._pieces = (self.keys.map(change),)
            self._rope_ends = (change(self._rope_ends[0]),)
            self._length = self._pieces[0].positions.shape[1]
        if self.ids is not None:
            self.ids = change(self.ids)

    def clear_rows(self, is_empty: torch.Tensor) -> None:
        """Let rows, (B,) bool, have seen nothing."""
        if len(self):
            self._pieces = (clear(self.keys, is_empty[:, None]),)
            self._rope_ends = (self._rope_ends[0].masked_fill(is_empty[:, None], 0),)

    def drop_padding(self) -> None:
        """Forget the padding: rows end together, and what a shorter one lacks stands at its beginning."""
        if not len(self):
            return
        keys = self.keys
        width = max(int(keys.is_real.sum(dim=1).max()), 1)
        places = keys.is_real.byte().sort(dim=1, stable=True).indices[:, len(self) - width :]
        self.change(lambda known: known.gather(1, places))
        is_padding = ~self.keys.is_real
        self._pieces = (clear(self.keys, is_padding),)
        self._rope_ends = (self._rope_ends[0].masked_fill(is_padding, 0),)

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

    def check_turns(self, turn_ids: torch.Tensor) -> None:
        """Check that the tokens seen have the turn numbers with which they were read.

        Args:
            turn_ids: (B, L) integers, of the sequence from its beginning.

        Raises:
            ValueError: If one has another number.
        """
        turns = self.keys.turns if len(self) else None
        if turns is None:
            return
        number = min(turn_ids.shape[1], len(self))
        differs = (turn_ids[:, :number].to(turns) != turns[:, :number]) & self.keys.is_real[:, :number]
        if bool(differs.any()):
            row, place = differs.nonzero()[0].tolist()
            raise ValueError(
                f"turn_ids says {turn_ids[row, place]} at place {place} of row {row}, but this HSACache has read that token in "
                f"turn {turns[row, place]}, and what it saw then cannot be changed. (A row that ends before the others reads its "
                "stop token as part of the reply. Where that token is the header of the next message, give such rows a cache each.)"
            )


def _ends_of_real(ends: torch.Tensor, is_real: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
    """Return what follows the last real token up to each, (B, Q). `before`: (B, 1), what followed those before; None: 0."""
    places = torch.arange(ends.shape[1], device=ends.device)
    last = torch.where(is_real, places, -1).cummax(dim=1).values
    before = ends.new_zeros(len(ends), 1) if before is None else before
    return torch.where(last < 0, before, ends.gather(1, last.clamp(min=0)))


def retype(changes: Sequence[Settled], seen: SeenTokens, tables: Sequence[KeyTable]) -> None:
    """Change types of tokens seen: all tables are asked, for all changes, before any of them changes.

    Raises:
        ValueError: If a key is gone that could be seen with the new type. Then nothing has changed.
    """
    if not changes:
        return
    keys, possible = seen.keys, []
    for row, start, stop, semantic_type in changes:
        is_real = keys.is_real[row, start:stop]
        tokens = keys.map(lambda known: known[row : row + 1, start:stop][:, is_real])
        if not tokens.positions.numel():
            continue
        possible.append((row, tokens.positions[0], semantic_type))
        tokens = tokens._replace(semantic_ids=torch.full_like(tokens.semantic_ids, semantic_type))
        next_position = keys.positions[row, -1] + 1
        next_turn = None if keys.turns is None else keys.turns[row, -1]
        if not all(table.can_retype(row, tokens, next_position, next_turn) for table in tables):
            raise ValueError(
                f"Tokens {start} to {stop} of row {row} cannot become {SemanticType(semantic_type).name} any more: their "
                "keys are gone. Say their type before, or make the cache with HSACache(config, evict=False)."
            )
    for table in tables:
        for change in possible:
            table.retype(*change)
    seen.retype(changes)
