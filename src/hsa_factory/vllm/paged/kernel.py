"""Attention over pages of a cache, by torch's fused kernel: pages that no query reads are never loaded."""

from collections.abc import Callable
from functools import cache

import torch
import torch.fx.experimental._config as shapes
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .mods import Mod
from .pages import QUERIES


def page_mask(number: torch.Tensor, pages: torch.Tensor, page_size: int, total: int, mask_mod: Mod) -> BlockMask:
    """Say which pages the blocks of queries read.

    Legend: N blocks of `QUERIES` queries, W pages of the block with most.

    Args:
        number: (N,) int32, of pages.
        pages: (N, W) int32, where they lie in the cache.
        page_size: Tokens of a page.
        total: Tokens of the cache.
        mask_mod: Which keys of them are seen.
    """
    return BlockMask.from_kv_blocks(
        number[None, None],
        pages[None, None],
        BLOCK_SIZE=(QUERIES, page_size),
        mask_mod=mask_mod,
        seq_lengths=(QUERIES * len(number), total),
        compute_q_blocks=False,  # those are for gradients
    )


def paged_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    score_mod: Mod | None,
    scale: float,
) -> torch.Tensor:
    """Attend.

    Legend: N queries, a multiple of `QUERIES`; S tokens of the cache.

    Args:
        query: (N, H, D).
        key: (S, Hkv, D).
        value: (S, Hkv, D).
        mask: Of `page_mask`.
        score_mod: How keys fade; None: not at all.
        scale: Factor of q·k.

    Returns:
        (N, H, D); rows that are no queries hold anything.

    Raises:
        RuntimeError: If torch cannot compile the kernel.
    """
    query, key, value = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    before = shapes.use_duck_shape
    shapes.use_duck_shape = False  # else numbers equal by chance, as of heads and blocks, would have to stay so
    try:
        answer = _compiled(query.device.type)(query, key, value, mask, score_mod, scale)
    finally:
        shapes.use_duck_shape = before
    return answer[0].transpose(0, 1)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    score_mod: Mod | None,
    scale: float,
) -> torch.Tensor:
    is_grouped = query.shape[1] != key.shape[1]
    rows, columns = mask.BLOCK_SIZE
    options = {"FORCE_USE_FLEX_ATTENTION": True, "BLOCK_M": rows, "BLOCK_N": columns} if query.is_cuda else None
    output: torch.Tensor = flex_attention(  # type: ignore[assignment]  # more only where more is asked for
        query,
        key,
        value,
        score_mod=score_mod,
        block_mask=mask,
        scale=scale,
        enable_gqa=is_grouped,
        kernel_options=options,  # type: ignore[arg-type]  # its type lacks the keys of one pass
    )
    return output


@cache
def _compiled(device_type: str) -> Callable[..., torch.Tensor]:
    # fullgraph: an error instead of attention to the whole cache; not dynamic on a CPU, where torch's code cannot be
    return torch.compile(_attend, fullgraph=True, dynamic=device_type != "cpu")
