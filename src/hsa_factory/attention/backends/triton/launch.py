"""Launching kernels with little work for the CPU, which decides how long short rows take."""

from collections.abc import Sequence
from typing import Any

import torch


_ALIGNMENT = 16  # bytes: what Triton compiles for if pointers, and numbers, are multiples of it
_compiled: dict[tuple[Any, ...], Any] = {}


class Launch:
    """A kernel with all arguments that stay the same from layer to layer.

    Triton looks at every argument of every call to find what it has compiled, which takes longer than a short row's
    attention. Here that is looked for once; a call then hands over addresses only.

    Args:
        kernel: Takes tensors that change from call to call, tensors that stay, numbers, and constants, in this order.
        grid: Programs, in three dimensions.
        tensors: Those that stay, as torch allocates them.
        numbers: Strides first, which Triton compiles for if they are multiples of 16, then others.
        strides: How many strides there are.
        constants: What the kernel is compiled for, and its options `num_warps` and `num_stages`.
        what: Whatever else tells apart what is compiled: types of numbers and the device.
    """

    __slots__ = ("_arguments", "_compiled", "_grid", "_key", "_kernel", "_kept")

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        tensors: Sequence[torch.Tensor],
        numbers: Sequence[float],
        strides: int,
        constants: dict[str, Any],
        what: tuple[Any, ...],
    ) -> None:
        self._kernel, self._grid, self._kept = kernel, grid, (tuple(tensors), tuple(numbers), constants)
        kinds = tuple([(number == 1, number % _ALIGNMENT == 0, number >= 2**31) for number in numbers[:strides]])
        self._key = (id(kernel), kinds, *constants.values(), *what)
        self._compiled = _compiled.get(self._key)
        last = [value for name, value in constants.items() if not name.startswith("num_")]
        self._arguments = (*[tensor.data_ptr() for tensor in tensors], *numbers, *last)

    def __call__(self, *tensors: torch.Tensor) -> None:
        """Launch it on the current stream."""
        addresses = [tensor.data_ptr() for tensor in tensors]
        is_aligned = True
        for address in addresses:
            if address % _ALIGNMENT:
                is_aligned = False
        if self._compiled is not None and is_aligned:
            self._compiled[self._grid](*addresses, *self._arguments)
            return
        kept, numbers, constants = self._kept
        compiled = self._kernel[self._grid](*tensors, *kept, *numbers, **constants)
        if is_aligned:
            self._compiled = _compiled[self._key] = compiled


def strides_of(*tensors: torch.Tensor) -> list[int]:
    """Return the strides of batch, heads and tokens of each tensor; of no batch at all 0, whatever torch says."""
    found = []
    for tensor in tensors:
        batch, head, token, _ = tensor.stride()
        found += [0 if tensor.shape[0] == 1 else batch, 0 if tensor.shape[1] == 1 else head, token]
    return found
