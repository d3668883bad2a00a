"""How the work is cut up, by head size and precision."""

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Tile:
    """The blocks of one kernel.

    Attributes:
        rows: Queries times heads of a group.
        keys: Keys.
        warps: Of a program.
        stages: Steps that are loaded ahead.
    """

    rows: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiles:
    """The blocks of all kernels; those of `forward` and `query` agree in rows and keys.

    Attributes:
        forward: Of the output.
        query: Of the gradient of queries.
        key: Of the gradients of keys and values.
    """

    forward: Tile
    query: Tile
    key: Tile


# By the shared memory of a multiprocessor that a program may take (KiB) and the head size; heads that are larger than one
# entry take the next. Registers and shared memory were looked up for sm_80, sm_89 and sm_90; those of 200 KiB are timed.
_HALF: dict[int, dict[int, Tiles]] = {
    200: {
        64: Tiles(Tile(128, 64, 4, 3), Tile(128, 64, 4, 3), Tile(64, 64, 4, 2)),
        128: Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
        256: Tiles(Tile(64, 32, 8, 2), Tile(64, 32, 8, 1), Tile(32, 64, 8, 1)),
    },
    150: {
        64: Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 2)),
        128: Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), Tile(32, 128, 8, 2)),
        256: Tiles(Tile(64, 32, 8, 2), Tile(64, 32, 8, 1), Tile(32, 64, 8, 1)),
    },
    0: {
        64: Tiles(Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
        128: Tiles(Tile(64, 32, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
        256: Tiles(Tile(32, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1)),
    },
}


@cache
def find_tiles(head_size: int, is_half: bool, shared_kib: int) -> Tiles:
    """Return the blocks for heads of a size in a precision.

    Args:
        head_size: D or E, whichever is larger; up to 256.
        is_half: Whether numbers are of 16 bits.
        shared_kib: Shared memory of a multiprocessor that a program may take.
    """
    if not is_half:  # products in full precision are no work for tensor cores
        size = 32 if head_size <= 64 or (head_size <= 128 and shared_kib >= 150) else 16
        return Tiles(*[Tile(size, size, 8, 1)] * 3)
    by_size = next(by_size for least, by_size in _HALF.items() if shared_kib >= least)
    return next(tiles for largest, tiles in by_size.items() if head_size <= largest)
