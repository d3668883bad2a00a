"""A number for each type, as a number for each token."""

from collections.abc import Sequence

import torch


def by_type(semantic_ids: torch.Tensor, values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
    """Return each token's number, as ``torch.tensor(values)[semantic_ids]`` would.

    Nothing is copied to the device: a copy from the CPU's memory waits until a GPU has done all that it was given before.

    Args:
        semantic_ids: Integers 0, 1 and 2, of any shape.
        values: One number a type.
        dtype: Of the result.

    Returns:
        The numbers, in the shape of `semantic_ids`.
    """
    numbers = torch.full_like(semantic_ids, values[0], dtype=dtype)
    for kind in range(1, len(values)):
        if values[kind] != values[0]:
            numbers.masked_fill_(semantic_ids == kind, values[kind])
    return numbers
