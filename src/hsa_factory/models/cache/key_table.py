"""What is known of the keys that some layers hold: their positions and types, and which of them may go."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ...attention import AttentionPlan, LayerRules
from .turns import UNKNOWN


class Keys(NamedTuple):
    """Keys of a batch, in the order of their tokens.

    Attributes:
        positions: (B, K) int64, each key's place in its document, padding not counted.
        semantic_ids: (B, K) int64, its `SemanticType`.
        is_real: (B, K) bool; False is padding.
        turns: (B, K) int64, the number of its turn, never falling along a row; at padding that of the key before. None:
            the rules have no turns.
    """

    positions: torch.Tensor
    semantic_ids: torch.Tensor
    is_real: torch.Tensor
    turns: torch.Tensor | None = None

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Keys":
        """Apply a function to all that is known."""
        turns = None if self.turns is None else change(self.turns)
        return Keys(change(self.positions), change(self.semantic_ids), change(self.is_real), turns)

    @classmethod
    def join(cls, pieces: "Sequence[Keys]") -> "Keys":
        """Return the keys of all pieces, one after another."""
        positions, semantic_ids, is_real, turns = zip(*pieces)
        known = [torch.cat(each, dim=1) for each in (positions, semantic_ids, is_real)]
        return cls(known[0], known[1], known[2], None if turns[0] is None else torch.cat(turns, dim=1))


def find_visible(
    keys: Keys, next_positions: torch.Tensor, rules: LayerRules, next_turns: torch.Tensor | None = None
) -> torch.Tensor:
    """Say which keys a later query may still see. Neither distances nor turns fall: the others can never be seen again.

    Args:
        keys: B rows of K keys.
        next_positions: (B,), the position of the row's next token.
        rules: The rules of the layers that hold the keys.
        next_turns: (B,), the turn of that token, or of an earlier one: nothing goes too early then. None: the rules have
            no turns.

    Returns:
        (B, K) bool.
    """
    windows, turns = rules.window_reach, rules.turn_reach
    for key_type in range(3):
        if all((query_type, key_type) in rules.hide for query_type in range(3)):
            windows[key_type], turns[key_type] = 0, -1
    distances = next_positions[:, None] - keys.positions
    visible = distances <= torch.tensor(windows, device=distances.device)[keys.semantic_ids]
    if keys.turns is not None and next_turns is not None and rules.has_turns:
        ages = next_turns[:, None] - keys.turns
        visible |= ages <= torch.tensor(turns, device=ages.device)[keys.semantic_ids]
        visible &= distances <= rules.sliding_reach
    return visible & keys.is_real


def clear(keys: Keys, is_empty: torch.Tensor) -> Keys:
    """Return keys of which some, (B, K) or (B, 1) bool, have become padding before a row's first token."""
    turns = None if keys.turns is None else keys.turns.masked_fill(is_empty, UNKNOWN)
    return Keys(keys.positions.masked_fill(is_empty, -1), keys.semantic_ids, keys.is_real & ~is_empty, turns)


class KeyTable:
    """Positions and types of the keys in all layers that share one set of rules.

    Rows hold different numbers of keys; they end together, and what a shorter row lacks at its beginning counts as
    padding. Tensors are replaced, never written to, so that an earlier state is a matter of keeping it.

    Args:
        rules: The rules of these layers.
        max_waiting: How many keys of a row that nobody can see any more may wait; they go together. None: none goes.

    Attributes:
        keys: The keys held; None before the first forward.
        new_padding: During a forward, (B, Q) bool, the new keys that are padding; None: none is.
        keep: During a forward, (B, K′) places among the keys held and the new ones of those to keep after it,
            ascending. None: all.
        is_open: Whether a forward is under way.
    """

    def __init__(self, rules: LayerRules, max_waiting: int | None) -> None:
        self.rules = rules
        self.max_waiting = max_waiting
        hidden = {key_type for _, key_type in rules.hide}
        limits = zip(rules.windows, rules.turns)
        self._fading_types = sum(limit != (None, None) or kind in hidden for kind, limit in enumerate(limits))
        self.forget()

    def forget(self) -> None:
        """Hold no key."""
        self.keys: Keys | None = None
        self._has_padding = False
        self._waiting = 0  # an upper bound
        self._close()

    def _close(self) -> None:
        self.is_open = False
        self.new_padding: torch.Tensor | None = None
        self.keep: torch.Tensor | None = None
        self._next: Keys | None = None  # what is held after the forward

    def __len__(self) -> int:
        return 0 if self.keys is None else self.keys.positions.shape[1]

    def may_drop(self, number: int, released: int) -> bool:
        """Whether so many keys might wait after a forward of `number` tokens that they go.

        Args:
            number: Q.
            released: How many keys of a row were held until now because their type was open, and no longer are.
        """
        if self.max_waiting is None or not self._fading_types:
            return False
        return self._waiting + number * self._fading_types + released >= self.max_waiting

    def begin(
        self,
        new: Keys,
        has_padding: bool = True,
        held_from: torch.Tensor | None = None,
        released: int = 0,
        has_new_turn: bool = False,
    ) -> AttentionPlan:
        """Add new keys and decide once, for all layers, which keys go after this forward.

        Args:
            new: The keys of this forward's Q tokens.
            has_padding: Whether any of them may be padding.
            held_from: (B,), keys from this position on stay because their type is not settled. None: none.
            released: How many keys of a row were held until now and no longer are.
            has_new_turn: Whether a row's turn may have gone up with them.

        Returns:
            The plan of these layers.
        """
        if has_new_turn and self.rules.has_turns:
            released += len(self)  # all of them may go at once
        may_drop = self.may_drop(new.positions.shape[1], released)
        is_first = self.keys is None
        keys = new if self.keys is None else Keys.join((self.keys, new))
        self._close()
        self.is_open, self._next = True, keys
        self._has_padding |= has_padding
        self.new_padding = ~new.is_real if has_padding else None
        self._waiting += new.positions.shape[1] * self._fading_types + released
        plan = AttentionPlan(
            keys.semantic_ids,
            keys.is_real,
            keys.positions,
            new.positions.shape[1],
            has_gaps=not is_first,
            has_padding=self._has_padding,
            has_clean_padding=True,
            is_packed=False,
            turn_ids=keys.turns,
        )
        if may_drop:
            self._choose(keys, held_from)
        return plan

    def _choose(self, keys: Keys, held_from: torch.Tensor | None) -> None:
        """Find the keys to keep, if enough of the others wait. The turn of the next token is that of the last one at least."""
        last_turns = None if keys.turns is None else keys.turns[:, -1]
        visible = find_visible(keys, keys.positions[:, -1] + 1, self.rules, last_turns)
        if held_from is not None:
            visible |= keys.is_real & (keys.positions >= held_from[:, None])
        self._waiting = int((keys.is_real & ~visible).sum(dim=1).max())
        if self.max_waiting is None or self._waiting < self.max_waiting:
            return

        width = int(visible.sum(dim=1).max())
        order = visible.byte().sort(dim=1, stable=True).indices  # what goes first: rows end together
        keep = order[:, order.shape[1] - width :]
        self.keep = keep
        self._next = keys._replace(is_real=visible).map(lambda tensor: tensor.gather(1, keep))
        self._has_padding, self._waiting = len(keep) > 1, 0

    def visible(self, next_positions: torch.Tensor, next_turns: torch.Tensor | None) -> torch.Tensor:
        """Return which of the keys held, one column at least, a next token may see: as `find_visible`."""
        assert self.keys is not None, "no key is held"
        return find_visible(self.keys, next_positions, self.rules, next_turns)

    def drop_padding(
        self, next_positions: torch.Tensor, next_turns: torch.Tensor | None, least: int
    ) -> torch.Tensor | None:
        """Let go of what no row needs, between two forwards: padding between tokens, and keys that nobody can see.

        Args:
            next_positions: (B,), as `find_visible`.
            next_turns: (B,), likewise.
            least: For how many columns fewer it is done.

        Returns:
            (B, K′) places of what stays, ascending along a row's keys; None: all does.
        """
        if self.keys is None:
            return None
        keeps = self.keys.is_real if self.max_waiting is None else self.visible(next_positions, next_turns)
        width = max(int(keeps.sum(dim=1).max()), 1)
        if keeps.shape[1] - width < least:
            return None
        places = keeps.byte().sort(dim=1, stable=True).indices[:, keeps.shape[1] - width :]
        self.keys = self.keys._replace(is_real=keeps).map(lambda known: known.gather(1, places))
        self._has_padding, self._waiting = True, 0
        return places

    def clear_rows(self, is_empty: torch.Tensor) -> None:
        """Let rows, (B,) bool, hold no key."""
        if self.keys is not None:
            self.keys, self._has_padding = clear(self.keys, is_empty[:, None]), True

    def commit(self) -> None:
        """End the forward: what was decided holds."""
        self.keys = self._next
        self._close()

    def change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Apply a function to what is known of all keys held."""
        if self.keys is not None:
            self.keys = self.keys.map(change)

    def can_retype(self, row: int, tokens: Keys, next_position: torch.Tensor, next_turn: torch.Tensor | None) -> bool:
        """Whether a row's keys may change their type: not if some are gone that could be seen with the new one.

        Args:
            row: Of the batch.
            tokens: One row of n consecutive tokens, all real, with their new types.
            next_position: The position of the row's next token.
            next_turn: The turn of the row's last token; None: the rules have no turns.
        """
        keys, chosen = self._find(row, tokens.positions[0])
        is_gone = ~torch.isin(tokens.positions[0], keys.positions[row, chosen])
        lost = tokens.map(lambda known: known[:, is_gone])
        turns = None if next_turn is None else next_turn.view(1)
        return not bool(find_visible(lost, next_position.view(1), self.rules, turns).any())

    def retype(self, row: int, positions: torch.Tensor, semantic_type: int) -> None:
        """Change the type of those of a row's keys, at (n,) consecutive positions, that are held."""
        keys, chosen = self._find(row, positions)
        semantic_ids = keys.semantic_ids.clone()
        semantic_ids[row, chosen] = semantic_type
        self.keys = keys._replace(semantic_ids=semantic_ids)
        self._waiting += len(positions)

    def _find(self, row: int, positions: torch.Tensor) -> tuple[Keys, torch.Tensor]:
        """Return the keys held, and which of a row's, (K,) bool, have these positions."""
        if self.keys is None:
            raise ValueError("No key is held whose type could change.")
        held, is_real = self.keys.positions[row], self.keys.is_real[row]
        return self.keys, is_real & (held >= positions[0]) & (held <= positions[-1])
