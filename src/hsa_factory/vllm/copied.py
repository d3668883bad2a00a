"""Rows copied out of the cache, into memory that is kept: new memory costs as much as what is copied into it."""

import torch


_buffers: dict[torch.dtype, torch.Tensor] = {}


def copied(rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return rows, to be used up before the next call.

    Args:
        rows: (R, W).
        places: Of any shape, int64, which rows.

    Returns:
        (number of places, W).
    """
    number, width = places.numel(), rows.shape[1]
    held = _buffers.get(rows.dtype)
    if held is None or len(held) < number * width:
        with torch.inference_mode(False):  # else it could be written to within such a mode only
            held = _buffers[rows.dtype] = torch.empty(number * width, dtype=rows.dtype)
    return torch.index_select(rows, 0, places.reshape(-1), out=held[: number * width].view(number, width))
