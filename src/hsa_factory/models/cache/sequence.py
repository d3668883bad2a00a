"""What is known of all tokens that a cache has seen, those included whose keys are gone."""

from collections.abc import Callable

import torch

from ..lookahead import Lookahead
from .key_table import Keys


class SeenTokens:
    """Positions and types of all tokens of a sequence, kept in pieces until somebody asks for them.

    Attributes:
        ahead: Tokens foreseen; those of them that have come count as seen. It ends whenever anything else is done.
    """

    def __init__(self) -> None:
        self._pieces: list[Keys] = []
        self._length = 0
        self.ahead: Lookahead | None = None

    def __len__(self) -> int:
        return self._length if self.ahead is None else self._length + self.ahead.taken

    @property
    def rows(self) -> int:
        """B; 0 before the first token."""
        return self._pieces[0].positions.shape[0] if self._pieces else 0

    @property
    def keys(self) -> Keys:
        """Of all tokens seen, one at least."""
        self._settle()
        if len(self._pieces) > 1:
            self._pieces = [Keys(*(torch.cat(pieces, dim=1) for pieces in zip(*self._pieces)))]
        return self._pieces[0]

    @property
    def last_positions(self) -> torch.Tensor:
        """(B, 1) int64, of each row's last token, one at least."""
        self._settle()
        return self._pieces[-1].positions[:, -1:]

    def append(self, keys: Keys) -> None:
        """Add tokens."""
        self._settle()
        self._pieces.append(keys)
        self._length += keys.positions.shape[1]

    def change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Reorder, repeat, select or shorten rows, by a function on a tensor (B, seen)."""
        if len(self):
            self._pieces = [self.keys.map(change)]
            self._length = self._pieces[0].positions.shape[1]

    def retype(self, semantic_ids: torch.Tensor) -> None:
        """Change the types of all tokens, (B, seen)."""
        self._pieces = [self.keys._replace(semantic_ids=semantic_ids)]

    def _settle(self) -> None:
        if self.ahead is not None and self.ahead.taken:
            self._pieces.append(self.ahead.keys())
            self._length += self.ahead.taken
        self.ahead = None
