"""Memory that is kept from call to call: new memory costs as much as what is copied into it."""

import torch


_buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}


def kept(use: str, number: int, dtype: torch.dtype) -> torch.Tensor:
    """Return memory of a CPU, (number,), that the next call for the same use returns again; what it held may be there yet.

    Args:
        use: What for; two uses share nothing.
        number: Of elements.
        dtype: Of the elements.
    """
    held = _buffers.get((use, dtype))
    if held is None or len(held) < number:
        with torch.inference_mode(False):  # else it could be written to within such a mode only
            held = _buffers[use, dtype] = torch.zeros(number, dtype=dtype)
    return held[:number]


def copied(rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return rows copied out of the cache, to be used up before the next call.

    Args:
        rows: (R, W).
        places: Of any shape, int64, which rows.

    Returns:
        (number of places, W).
    """
    number, width = places.numel(), rows.shape[1]
    held = kept("rows", number * width, rows.dtype).view(number, width)
    return torch.index_select(rows, 0, places.reshape(-1), out=held)
