"""How large an `HSACache` is after each forward: the keys that it holds, those that wait, and room for the next ones.

It follows `models/cache/key_table.py` (which keys go, and when) and `models/cache/layer.py` (how buffers grow).
"""

import numpy as np


def cache_size(dead: np.ndarray, forwards: np.ndarray, max_waiting: int = 256, room: int = 256) -> np.ndarray:
    """Follow a cache through forwards; the work is that of the changes of its buffers, not of the forwards.

    Args:
        dead: (n,) how many keys no later token can see, after each token.
        forwards: (f,) tokens read after each forward, ascending; the last is n.
        max_waiting: So many keys that nobody can see go together.
        room: Keys that a new buffer has room for beyond those in it.

    Returns:
        (f,) how many keys one layer's buffers have room for, after each forward.
    """
    after = np.zeros(len(forwards), np.int64)
    waiting = dead[forwards - 1]
    place, dropped, width = 0, 0, 0
    while place < len(forwards):
        drop = int(np.searchsorted(waiting, dropped + max_waiting))
        stop = min(drop, len(forwards))
        while place < stop:  # up to the forward that drops keys
            if forwards[place] - dropped > width:
                width = int(forwards[place]) - dropped + room
            grows = max(int(np.searchsorted(forwards, dropped + width, side="right")), place + 1)
            after[place : min(grows, stop)] = width
            place = min(grows, stop)
        if drop < len(forwards):
            dropped = int(waiting[drop])
            width = int(forwards[drop]) - dropped + room
            after[drop] = width
            place = drop + 1
    return after
