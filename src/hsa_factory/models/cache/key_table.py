"""What is known of the keys that some layers hold: their positions and types, and which of them may go."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from ...attention import AttentionPlan, LayerRules


_FOREVER = 2**62


class Keys(NamedTuple):
    """Keys of a batch, in the order of their tokens.

    Attributes:
        positions: (B, K) int64, each key's place in its document, padding not counted.
        semantic_ids: (B, K) int64, its `SemanticType`.
        is_real: (B, K) bool; False is padding.
    """

    positions: torch.Tensor
    semantic_ids: torch.Tensor
    is_real: torch.Tensor

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Keys":
        """Apply a function to each of the three."""
        return Keys(*map(change, self))

    def join(self, later: "Keys") -> "Keys":
        """Return these keys and later ones."""
        return Keys(*(torch.cat(pair, dim=1) for pair in zip(self, later)))


def find_visible(keys: Keys, next_positions: torch.Tensor, rules: LayerRules) -> torch.Tensor:
    """Say which keys a later query may still see. Distances only grow, so the others can never be seen again.

    Args:
        keys: B rows of K keys.
        next_positions: (B,), the position of the row's next token.
        rules: The rules of the layers that hold the keys.

    Returns:
        (B, K) bool.
    """
    windows = [_FOREVER if window is None else window for window in rules.windows]
    for key_type in range(3):
        if all((query_type, key_type) in rules.hide for query_type in range(3)):
            windows[key_type] = 0
    reach = torch.tensor(windows, device=keys.positions.device)[keys.semantic_ids]
    return keys.is_real & (next_positions[:, None] - keys.positions <= reach)


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
        self._fading_types = sum(window is not None or kind in hidden for kind, window in enumerate(rules.windows))
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
        self, new: Keys, has_padding: bool = True, held_from: torch.Tensor | None = None, released: int = 0
    ) -> AttentionPlan:
        """Add new keys and decide once, for all layers, which keys go after this forward.

        Args:
            new: The keys of this forward's Q tokens.
            has_padding: Whether any of them may be padding.
            held_from: (B,), keys from this position on stay because their type is not settled. None: none.
            released: How many keys of a row were held until now and no longer are.

        Returns:
            The plan of these layers.
        """
        may_drop = self.may_drop(new.positions.shape[1], released)
        is_first = self.keys is None
        keys = new if self.keys is None else self.keys.join(new)
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
        )
        if may_drop:
            self._choose(keys, new.positions[:, -1] + 1, held_from)
        return plan

    def _choose(self, keys: Keys, next_positions: torch.Tensor, held_from: torch.Tensor | None) -> None:
        """Find the keys to keep, if enough of the others wait."""
        visible = find_visible(keys, next_positions, self.rules)
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

    def commit(self) -> None:
        """End the forward: what was decided holds."""
        self.keys = self._next
        self._close()

    def change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Apply a function to what is known of all keys held."""
        if self.keys is not None:
            self.keys = self.keys.map(change)

    def can_retype(self, row: int, positions: torch.Tensor, semantic_type: int, next_position: torch.Tensor) -> bool:
        """Whether a row's keys may change their type: not if some are gone that could be seen with the new one.

        Args:
            row: Of the batch.
            positions: (n,), the keys' positions, consecutive.
            semantic_type: The new type.
            next_position: The position of the row's next token.
        """
        keys, chosen = self._find(row, positions)
        gone = positions[~torch.isin(positions, keys.positions[row, chosen])]
        lost = Keys(gone, torch.full_like(gone, semantic_type), torch.ones_like(gone, dtype=torch.bool))
        visible = find_visible(lost.map(lambda tensor: tensor[None]), next_position.view(1), self.rules)
        return not bool(visible.any())

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
