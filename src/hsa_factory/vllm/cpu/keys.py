"""Where the keys of a request lie in the cache, sorted by type: of each type, those that a query sees follow each other."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .memory import address_of


class KeysByType:
    """Keys of one request, in the order of their positions; it grows as the request does.

    Legend: N, room for keys of a type.

    Args:
        heads: Hkv, of the cache.
        block_size: Tokens of its blocks.

    Attributes:
        places: (3, N) int32, the positions of the keys of each type, ascending.
        slots: (3, N) int64, where each lies, as the row of its first head in a cache of rows (blocks·Hkv·block size); what the block
            table says of a block that was given back stays there, and is never read.
        number: How many tokens were taken in.
        numbers: (3,) int64, how many of each type.
        told: What a kernel is told of all this: addresses of places and slots, N, and the numbers.
    """

    told: tuple[int, int, int, tuple[int, ...]]

    def __init__(self, heads: int, block_size: int) -> None:
        self._heads, self._block_size = heads, block_size
        self.number = 0
        self.places = np.empty((3, 0), np.int32)
        self.slots = np.empty((3, 0), np.int64)
        self.numbers = np.zeros(3, np.int64)

    def grow(self, types: NDArray[np.uint8], stop: int, table: NDArray[Any]) -> None:
        """Take in the keys up to a position, those that are not known yet.

        Args:
            types: Of the request's tokens.
            stop: The position.
            table: Which block of the cache each of the request's blocks is: int32.
        """
        if stop <= self.number:
            return
        if stop > self.places.shape[1]:
            room = max(2 * self.places.shape[1], stop + self._block_size)
            self.places, self.slots = (_with_room(values, room) for values in (self.places, self.slots))
        _sort(
            types, self.number, stop, table, self._heads, self._block_size, self.places, self.slots, self.numbers
        )  # fmt: skip
        self.number = stop
        self.told = (
            address_of(self.places),
            address_of(self.slots),
            self.places.shape[1],
            tuple(self.numbers.tolist()),
        )


def _with_room(values: NDArray[Any], room: int) -> NDArray[Any]:
    grown = np.empty((3, room), values.dtype)
    grown[:, : values.shape[1]] = values
    return grown


@njit
def _sort(types, start, stop, table, heads, block_size, places, slots, numbers):
    for place in range(start, stop):
        kind = types[place]
        at = numbers[kind]
        places[kind, at] = place
        slots[kind, at] = np.int64(table[place // block_size]) * heads * block_size + place % block_size
        numbers[kind] = at + 1
