"""Which turns the tokens are of that come into a cache."""

from typing import Any

import torch

from ...attention.inputs import missing_turns
from ...config import HSAConfig
from .sequence import SeenTokens
from .turns import UNKNOWN, check_turn_ids


class IncomingTurns:
    """Turn numbers of tokens to come: given with them, or those of a prompt; what is generated has its last one.

    Args:
        config: The rules; without turns nothing is kept.
    """

    def __init__(self, config: HSAConfig) -> None:
        self._config, self._are_needed = config, config.has_turns
        self.forget()

    def forget(self) -> None:
        """Start a sequence anew."""
        self._prompt: torch.Tensor | None = None

    def expect(self, turn_ids: torch.Tensor | None, shape: tuple[int, ...], seen: SeenTokens) -> None:
        """Say the numbers of the first tokens of the sequence.

        Args:
            turn_ids: (B, n) integers; None: the rules have no turns.
            shape: (B, n).
            seen: The tokens seen.

        Raises:
            ValueError: If they are missing, do not fit, or a token seen has another number.
        """
        turns = self._check(turn_ids, *shape)
        if turns is not None:
            seen.check_turns(turns)
        self._prompt = None if turns is None else turns.to(torch.long, copy=True)

    def of(
        self, turn_ids: torch.Tensor | None, rows: int, number: int, seen: SeenTokens, is_expected: bool
    ) -> torch.Tensor | None:
        """Return the numbers of the next tokens.

        Args:
            turn_ids: (B, Q) or, those seen included, (B, seen + Q) integers; None: as was said with `expect`.
            rows: B.
            number: Q.
            seen: The tokens before them.
            is_expected: Whether they are those of `expect`, or generated.

        Returns:
            (B, Q) integers, `UNKNOWN` after the prompt; None: all go on with the last one, or the rules have no turns.

        Raises:
            ValueError: If they are missing, do not fit, or a token seen has another number.
        """
        if turn_ids is None and is_expected and self._are_needed:
            if self._prompt is not None and self._prompt.shape[1] > len(seen):
                given = self._prompt[:, len(seen) : len(seen) + number]
                given = given.repeat_interleave(rows // len(given), 0)
                return torch.nn.functional.pad(given, (0, number - given.shape[1]), value=UNKNOWN)
            if len(seen):
                return None
        turns = self._check(turn_ids, rows, number, len(seen))
        if turns is None:
            return None
        if turns.shape[1] > number:
            seen.check_turns(turns)
        return turns[:, -number:]

    def _check(self, turn_ids: Any, rows: int, number: int, seen: int = 0) -> torch.Tensor | None:
        """Check what a user gives; return it where it is needed."""
        if turn_ids is not None:
            check_turn_ids(turn_ids, rows, number, seen)
        elif self._are_needed:
            raise missing_turns(self._config.turns)
        return turn_ids if self._are_needed else None
