"""Memory that kernels are told by its address."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .instructions import LINE


_kept = threading.local()  # kernels may run at once, of several threads of Python


def address_of(values: NDArray[Any]) -> int:
    """Return where an array begins; it must be kept as long as it is read there."""
    return int(values.__array_interface__["data"][0])


def scratch(number: int) -> NDArray[np.uint8]:
    """Return so many bytes, from a line of the processor's cache on, that the next call in this thread returns again.

    New memory costs as much as what is written to it. They hold what the last kernel left there, and only one may use them at a time.
    """
    held = getattr(_kept, "held", None)
    if held is None or len(held) < number:
        room = np.empty(number + LINE, np.uint8)
        held = _kept.held = room[-address_of(room) % LINE :]
    return held[:number]
