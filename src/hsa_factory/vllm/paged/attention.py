"""Attention over vLLM's pages by kernels of ours: what a forward tells them, and how they are started."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton

from ...attention.layer_rules import LayerRules
from .kernels import attend_kernel, write_kernel
from .pages import Piece, blocks_of


_FAR = 2**30  # above every distance and number of turns
_ROWS = 128  # of a product: queries of a block times query heads of a key head
_ROWS_EXACT = 32  # in float32, which has no tensor cores: more take long to compile
_MOST = 64  # queries of a block: with more, pages that few of them see cost more
_FEWEST = 16  # rows: the fewest that a GPU multiplies at once
_KEYS = 64  # of a product
_LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class Work:
    """Blocks of queries that are computed alike.

    Attributes:
        queries: The most of a block.
        blocks: (blocks, 7) int32: where the first query stands among the tokens of the forward, how many there are, the position
            of the first; the row of its request in the table of types, and in that of pages; how many pages, and where in
            `Forward.numbers`.
    """

    queries: int
    blocks: torch.Tensor


@dataclass(frozen=True)
class Forward:
    """Of one forward, the same for all layers.

    Attributes:
        works: Together, all queries.
        numbers: (pages,) int32, those of each block one after the other, as numbers within its request.
        table: (requests, pages of a request) int32, vLLM's block table.
        types: (rows, length) uint8, of the tokens of each request.
        turns: (rows, length) int64, their turn numbers; None: the rules have no turns.
        page_size: Tokens of a page.
    """

    works: tuple[Work, ...]
    numbers: torch.Tensor
    table: torch.Tensor
    types: torch.Tensor
    turns: torch.Tensor | None
    page_size: int


def queries_of_a_block(group: int, dtype: torch.dtype) -> int:
    """Return how many queries a block has, of a prompt.

    Args:
        group: Query heads of a key head.
        dtype: Of queries and keys.
    """
    rows = _ROWS_EXACT if dtype == torch.float32 else _ROWS
    return max(1, min(_MOST, rows // triton.next_power_of_2(group)))


def works_of(
    pieces: Sequence[Piece], table_rows: Sequence[int], page_size: int, most: int, device: torch.device
) -> tuple[tuple[Work, ...], torch.Tensor]:
    """Sort queries into blocks, single ones apart, and copy what the kernel is told to the device at once.

    Args:
        pieces: Of the forward; at least one.
        table_rows: For each of them, the row of its request in the table of types.
        page_size: Tokens of a page.
        most: Queries of a block, as `queries_of_a_block` says.
        device: Where the kernel runs.

    Returns:
        `Forward.works` and `Forward.numbers`.
    """
    sizes, told, numbers, start = [], [], [], 0
    for size, is_single in ((1, True), (most, False)):
        chosen = [index for index, piece in enumerate(pieces) if (piece.stop - piece.start == 1) == is_single]
        if not chosen:
            continue
        found = blocks_of([pieces[index] for index in chosen], page_size, size)
        owner = np.array(chosen)[found.pieces]
        rows = np.array(table_rows)[owner], np.array([piece.row for piece in pieces])[owner]
        begins = start + np.cumsum(found.number) - found.number
        told.append(np.stack([found.places, found.queries, found.positions, *rows, found.number, begins], axis=1))
        numbers.append(found.pages)
        sizes.append(size)
        start += len(found.pages)
    flat = torch.from_numpy(np.concatenate([*(one.ravel() for one in told), *numbers]).astype(np.int32))
    if device.type == "cuda":
        flat = flat.pin_memory()
    *blocks, held = flat.to(device, non_blocking=True).split([*(one.size for one in told), start])
    return tuple(Work(size, one.view(-1, 7)) for size, one in zip(sizes, blocks)), held


def write(key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
    """Write new keys and values into the cache.

    Args:
        key: (T, Hkv, D), the heads of a token side by side.
        value: Likewise.
        cache: (slots, Hkv, 2·D), likewise.
        slots: (T,), where each goes; below 0: nowhere.
    """
    heads, size = key.shape[1:]
    write_kernel[(len(slots),)](
        key,
        value,
        cache,
        slots,
        key.stride(0),
        value.stride(0),
        cache.stride(0),
        HEADS=heads,
        D=size,
        BLOCK=triton.next_power_of_2(heads * size),
    )


def attend(
    query: torch.Tensor, cache: torch.Tensor, forward: Forward, rules: LayerRules, scale: float, output: torch.Tensor
) -> None:
    """Attend.

    Legend: T tokens, H query heads, S slots of the cache.

    Args:
        query: (T, H, D).
        cache: (S, Hkv, 2·D), keys and values.
        forward: What queries are where.
        rules: Of the layer.
        scale: Factor of q·k.
        output: (T, H, D), written to.
    """
    size, heads = query.shape[2], cache.shape[1]
    group = query.shape[1] // heads
    reach = [min(most, _FAR) for most in (*rules.window_reach, *rules.turn_reach, rules.sliding_reach)]
    decays = [decay * _LOG2E for decay in rules.decays]
    for work in forward.works:
        rows = max(_FEWEST, triton.next_power_of_2(work.queries * group))
        attend_kernel[(len(work.blocks), heads)](
            query, cache, output, work.blocks, forward.numbers, forward.table, forward.types,
            forward.types if forward.turns is None else forward.turns, scale * _LOG2E,
            *reach[:3], *decays, *reach[3:],
            query.stride(0), query.stride(1), cache.stride(0), cache.stride(1), output.stride(0), output.stride(1),
            forward.table.stride(0), forward.types.shape[1],
            **_options(size, group, rows, forward, rules, query.dtype),
        )  # fmt: skip


def _options(
    size: int, group: int, rows: int, forward: Forward, rules: LayerRules, dtype: torch.dtype
) -> dict[str, Any]:
    is_exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return {
        "GROUP": group,
        "D": size,
        "BLOCK_D": max(_FEWEST, triton.next_power_of_2(size)),
        "ROWS": rows,
        "PAGE": forward.page_size,
        "PAGES": max(1, _KEYS // forward.page_size),
        "FADING": any(rules.decays),
        "TURNS": rules.has_turns,
        "HIDDEN": rules.hide_bits,
        "PRECISION": "ieee" if is_exact else "tf32",
        "num_warps": 4 if rows <= 64 else 8,
        "num_stages": 3 if dtype != torch.float32 else 2,
    }
