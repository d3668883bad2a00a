"""Which type a generated token has: the protocol, and the simplest answer."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch


class Settled(NamedTuple):
    """Tokens whose type has become known only after them.

    Attributes:
        row: Of the batch.
        start: The first, counted from the first token that the tagger was shown.
        stop: After the last.
        semantic_type: What they are.
    """

    row: int
    start: int
    stop: int
    semantic_type: int


@runtime_checkable
class Tagger(Protocol):
    """Types the tokens that a model generates, as they come."""

    def tag(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Take in the next tokens, (B, Q), and return their types for now, (B, Q), on any device."""

    def settled(self) -> list[Settled]:
        """Return the tokens whose type has changed since the last call."""

    def unsettled(self) -> list[int] | None:
        """Return, for each row, the first token whose type may change yet, counted as in `Settled`.

        A row without one gives the number of its tokens. None: no row has one.
        """

    def change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Reorder, repeat or select rows, by a function on a tensor (B, …)."""


@runtime_checkable
class RewindableTagger(Tagger, Protocol):
    """A tagger that can take tokens back, after a forward pass that failed; without it a cache is then of no use."""

    def snapshot(self) -> Any:
        """Return what `restore` goes back to; called before every forward pass, so it must be quick."""

    def restore(self, snapshot: Any) -> None:
        """Forget what has come since a snapshot."""


class ConstantTagger:
    """Gives every token the same type.

    Args:
        semantic_type: That type.
    """

    def __init__(self, semantic_type: int) -> None:
        self.semantic_type = int(semantic_type)

    def tag(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the type for each of (B, Q) tokens, on the CPU, where it is looked at."""
        return torch.full(token_ids.shape, self.semantic_type)

    def message_types(self, rows: int) -> list[int]:
        """Return, for each of so many rows, the type of what a chat template writes around the message."""
        return [self.semantic_type] * rows

    def settled(self) -> list[Settled]:
        """Return nothing."""
        return []

    def unsettled(self) -> list[int] | None:
        """Return None."""
        return None

    def change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Do nothing: all rows are alike."""

    def snapshot(self) -> None:
        """Return nothing: there is nothing to remember."""

    def restore(self, snapshot: None) -> None:
        """Do nothing."""
