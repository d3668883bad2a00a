"""`cu_seq_lens_q` and `cu_seq_lens_k`: where each document ends in the rows laid end to end, as flash attention takes it."""

from typing import Any

import torch


_QUERIES, _KEYS = "cu_seq_lens_q", "cu_seq_lens_k"


def documents_from_lengths(
    given: dict[str, Any], is_real: torch.Tensor, in_cache: int = 0
) -> tuple[str, torch.Tensor] | None:
    """Read the cumulative lengths.

    They count all tokens, or, where there is padding, may count the real ones only. A last number that comes again is an empty
    document, with which some collators fill them up.

    Args:
        given: The forward's arguments by name.
        is_real: (B, Q) bool, which of its tokens are not padding.
        in_cache: Tokens a row before them; then only queries are looked at: the keys are more.

    Returns:
        The name of the argument that says it, and (B, Q) numbers; None: there are none.

    Raises:
        ValueError: If they are no whole numbers from 0 up, do not end where the tokens do, or a document goes over the end of
            a row; if those of queries and keys differ; if a greatest length does not fit, or comes without them.
    """
    found = [(name, given[name]) for name in (_QUERIES, _KEYS) if given.get(name) is not None]
    if in_cache:
        found = found[:1]
    if not found:
        if not in_cache:
            _refuse_greatest_length_alone(given, is_real.shape[1])
        return None

    name, lengths = found[0]
    ends = _checked(name, lengths)
    for other, numbers in found[1:]:
        if _checked(other, numbers) != ends:
            raise ValueError(f"{name} and {other} disagree on where documents begin: pass the same for both.")
    _check_greatest_length(given, name, ends)
    return name, _number(name, ends, is_real)


def _checked(name: str, lengths: Any) -> list[int]:
    """Return the numbers without empty documents."""
    if not isinstance(lengths, torch.Tensor) or lengths.dim() != 1 or lengths.is_floating_point():
        found = (
            f"{lengths.dtype} {tuple(lengths.shape)}" if isinstance(lengths, torch.Tensor) else type(lengths).__name__
        )
        raise ValueError(f"{name} must be whole numbers of shape (documents + 1,), got {found}.")
    ends: list[int] = lengths.tolist()
    if not ends or ends[0] != 0 or any(later < earlier for earlier, later in zip(ends, ends[1:])):
        raise ValueError(f"{name} must go up from 0, got {ends[:8]}{' …' if len(ends) > 8 else ''}.")
    return [0, *(later for earlier, later in zip(ends, ends[1:]) if later > earlier)]


def _number(name: str, ends: list[int], is_real: torch.Tensor) -> torch.Tensor:
    """Number the documents, (B, Q)."""
    rows, length = is_real.shape
    places = torch.arange(rows * length, device=is_real.device).view(rows, length)
    if ends[-1] != rows * length:
        places = is_real.flatten().cumsum(dim=0).view(rows, length) - 1
        if ends[-1] != int(is_real.sum()):
            raise ValueError(
                f"{name} ends at {ends[-1]}, but the input has (batch, length) = {(rows, length)}, {int(is_real.sum())} of "
                "them real: it must end where the tokens do."
            )
    bounds = torch.tensor(ends[1:], device=is_real.device)
    numbers = torch.bucketize(places.clamp(min=0), bounds, right=True)
    for row in range(1, rows):
        inside = is_real[row - 1].any() & is_real[row].any()
        if inside and bool(numbers[row][is_real[row]][0] == numbers[row - 1][is_real[row - 1]][-1]):
            raise ValueError(
                f"{name}: a document goes on from row {row - 1} into row {row}: end each row's last document with the row."
            )
    return numbers


def _greatest_lengths(given: dict[str, Any]) -> list[tuple[str, int]]:
    names = ("max_length_q", "max_length_k")
    return [(name, int(given[name])) for name in names if given.get(name) is not None]


def _check_greatest_length(given: dict[str, Any], name: str, ends: list[int]) -> None:
    longest = max((later - earlier for earlier, later in zip(ends, ends[1:])), default=0)
    for greatest, length in _greatest_lengths(given):
        if length < longest:
            raise ValueError(f"{greatest} = {length}, but the longest document of {name} has {longest} tokens.")


def _refuse_greatest_length_alone(given: dict[str, Any], length: int) -> None:
    for greatest, found in _greatest_lengths(given):
        if found < length:
            raise ValueError(
                f"{greatest} = {found} says that rows of {length} tokens hold several documents, but not where they begin: pass "
                f"{_QUERIES} and {_KEYS}, too."
            )
