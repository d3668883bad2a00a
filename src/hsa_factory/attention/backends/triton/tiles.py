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


@cache
def find_tiles(head_size: int, is_half: bool) -> Tiles:
    """Return the blocks for heads of a size (a power of two) in a precision."""
    if not is_half:  # products in full precision are no work for tensor cores
        size = 32 if head_size <= 128 else 16
        return Tiles(*[Tile(size, size, 8, 1)] * 3)
    if head_size <= 64:
        return Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 2))
    if head_size <= 128:
        return Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 2))
    return Tiles(Tile(64, 32, 8, 2), Tile(64, 32, 8, 1), Tile(32, 64, 8, 1))
