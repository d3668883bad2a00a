"""What is known of the keys that some layers hold: their positions and types, and which of them may go."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from ...attention.layer_rules import EffectiveRules


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


def find_visible(keys: Keys, next_positions: torch.Tensor, rules: EffectiveRules) -> torch.Tensor:
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
    padding.

    Args:
        rules: The rules of these layers.
        max_waiting: How many keys of a row that nobody can see any more may wait; they go together. None: none goes.

    Attributes:
        new_keys: During a forward, those held and the new ones; None if the new one was foreseen.
        new_padding: During a forward, (B, Q) bool, the new keys that are padding; None: none is.
        keep: During a forward, (B, K′) places in `new_keys` of those to keep after it, ascending. None: all.
        is_open: Whether a forward is under way.
    """

    def __init__(self, rules: EffectiveRules, max_waiting: int | None) -> None:
        self.rules = rules
        self.max_waiting = max_waiting
        hidden = {key_type for _, key_type in rules.hide}
        self._fading_types = sum(window is not None or kind in hidden for kind, window in enumerate(rules.windows))
        self._waiting = 0  # an upper bound
        self._held: Keys | None = None  # and foreseen
        self._length = 0  # without those foreseen
        self.abort()

    def __len__(self) -> int:
        return self._length

    @property
    def keys(self) -> Keys | None:
        """The keys held; None before the first forward."""
        return None if self._held is None else self._held.map(lambda tensor: tensor[:, : self._length])

    def _hold(self, keys: Keys) -> None:
        self._held, self._length = keys, keys.positions.shape[1]

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
        self, new: Keys, next_positions: torch.Tensor, held_from: torch.Tensor | None = None, released: int = 0
    ) -> None:
        """Add new keys and decide once, for all layers, which keys go after this forward.

        Args:
            new: The keys of this forward's Q tokens.
            next_positions: (B,), the position of the row's next token after this forward.
            held_from: (B,), keys from this position on stay because their type is not settled. None: none.
            released: How many keys of a row were held until now and no longer are.
        """
        number, may_drop = new.positions.shape[1], self.may_drop(new.positions.shape[1], released)
        self.abort()
        self.is_open, self.new_keys = True, self._join(new)
        self.new_padding = None if bool(new.is_real.all()) else ~new.is_real
        self._waiting += number * self._fading_types + released
        if not may_drop:
            return

        visible = find_visible(self.new_keys, next_positions, self.rules)
        if held_from is not None:
            visible |= self.new_keys.is_real & (self.new_keys.positions >= held_from[:, None])
        self._waiting = int((self.new_keys.is_real & ~visible).sum(dim=1).max())
        if self._waiting >= self.max_waiting:
            width = int(visible.sum(dim=1).max())
            order = visible.byte().sort(dim=1, stable=True).indices  # what goes first: rows end together
            self.keep, self._visible = order[:, order.shape[1] - width :], visible

    def foresee(self, new: Keys) -> Keys:
        """Take in what will be known of the next tokens' keys, and return it with that of the keys held."""
        self._held = self._join(new)
        return self._held

    def begin_foreseen(self, released: int = 0) -> None:
        """Begin a forward of one token, the next of those foreseen; no key goes after it."""
        self.abort()
        self.is_open = True
        self._waiting += self._fading_types + released

    def _join(self, new: Keys) -> Keys:
        return new if self._held is None else Keys(*(torch.cat(pair, dim=1) for pair in zip(self.keys, new)))

    def commit(self) -> None:
        """End the forward: what was decided holds."""
        if self.new_keys is None:
            self._length += 1
        elif self.keep is None:
            self._hold(self.new_keys)
        else:
            keep = self.keep
            self._hold(Keys(*self.new_keys[:2], self._visible).map(lambda tensor: tensor.gather(1, keep)))
            self._waiting = 0
        self.abort()

    def abort(self) -> None:
        """Forget the forward."""
        self.is_open = False
        self.new_keys = self.new_padding = self.keep = self._visible = None

    def change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Apply a function to what is known of all keys held."""
        if self._held is not None:
            self._hold(self.keys.map(change))

    def retype(self, row: int, positions: torch.Tensor, semantic_type: int, next_position: torch.Tensor) -> bool:
        """Change the type of a row's keys.

        Args:
            row: Of the batch.
            positions: (n,), the keys' positions, consecutive.
            semantic_type: The new type.
            next_position: The position of the row's next token.

        Returns:
            Whether it could be done: False if keys are gone that could be seen with the new type.
        """
        held, _, is_real = (tensor[row] for tensor in self.keys)
        chosen = is_real & (held >= positions[0]) & (held <= positions[-1])
        gone = positions[~torch.isin(positions, held[chosen])]
        lost = Keys(gone, torch.full_like(gone, semantic_type), torch.ones_like(gone, dtype=torch.bool))
        if bool(find_visible(lost.map(lambda tensor: tensor[None]), next_position.view(1), self.rules).any()):
            return False
        semantic_ids = self.keys.semantic_ids.clone()
        semantic_ids[row, chosen] = semantic_type
        self._hold(self.keys._replace(semantic_ids=semantic_ids))
        self._waiting += len(positions)
        return True
