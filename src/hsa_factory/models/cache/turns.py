"""Turn numbers of the tokens that come into a cache: checked, and known at every token."""

from typing import Any

import torch

from ...attention.inputs import falling_turns, is_too_large, too_large_turn


UNKNOWN = -(2**40)  # below every number: a token's that has that of the token before it


def check_turn_ids(turn_ids: Any, rows: int, number: int, seen: int = 0) -> None:
    """Check what a user gives.

    Args:
        turn_ids: (B, Q) or, those seen included, (B, seen + Q) whole numbers.
        rows: B.
        number: Q.
        seen: Tokens before them.

    Raises:
        ValueError: If it is something else.
    """
    shape = tuple(turn_ids.shape) if isinstance(turn_ids, torch.Tensor) else type(turn_ids).__name__
    if shape not in ((rows, number), (rows, seen + number)):
        cached = f", {seen} of them cached" if seen else ""
        raise ValueError(
            f"turn_ids has shape {shape}, but the input has (batch, length) = {(rows, seen + number)}{cached}."
        )
    if turn_ids.is_floating_point() or turn_ids.dtype == torch.bool:
        raise ValueError(f"turn_ids must hold whole numbers, got {turn_ids.dtype}.")


def settle_turns(
    turn_ids: torch.Tensor, is_real: torch.Tensor | None, before: torch.Tensor | None = None, seen: int = 0
) -> torch.Tensor:
    """Give padding, and tokens whose number is `UNKNOWN`, the number of the real token before them.

    Args:
        turn_ids: (B, Q) integers.
        is_real: (B, Q) bool, False is padding; None: all are real.
        before: (B, 1), the number of the token before them; None: there is none.
        seen: Tokens before them, for the message.

    Returns:
        (B, Q) int64, never falling; `UNKNOWN` where no real token stands before.

    Raises:
        ValueError: If a row's numbers fall, or one is too large.
    """
    given = turn_ids.long() if is_real is None else turn_ids.long().masked_fill(~is_real, UNKNOWN)
    known = given if before is None else torch.cat([before, given], dim=1)
    settled = known.cummax(dim=1).values
    is_wrong = (known != UNKNOWN) & ((known < settled) | is_too_large(known))
    if bool(is_wrong.any()):
        row, place = is_wrong.nonzero()[0].tolist()
        number, highest, shift = known[row, place], settled[row, place], seen - (before is not None)
        if bool(is_too_large(number)):
            raise too_large_turn(number)
        former = int((known[row, :place] == highest).nonzero()[-1]) + shift
        raise falling_turns(row, (highest, former), (number, place + shift))
    return settled if before is None else settled[:, 1:]
