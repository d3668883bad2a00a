"""Buffers for the big intermediates of `blockwise`, used again by every block, layer and pass of a plan."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Workspace:
    """Named buffers that all blocks of a pass share, so that the big intermediates stay in the processor's cache."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.buffers: dict[str, torch.Tensor] = {}

    def get(self, name: str, *shape: int) -> torch.Tensor:
        """Return an uninitialised contiguous tensor; it is valid until the same name is asked for again."""
        size = 1
        for length in shape:
            size *= length
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < size:
            with torch.inference_mode(False):  # training may write to it next
                buffer = self.buffers[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return buffer[:size].view(shape)


class WorkspacePool:
    """Workspaces that wait for the next pass: fresh memory costs as much as the products of a short row.

    Threads may share a pool; two passes at once get two workspaces.
    """

    def __init__(self) -> None:
        self._spare: list[Workspace] = []

    @contextmanager
    def lend(self, like: torch.Tensor) -> Iterator[Workspace]:
        """Lend a workspace on the device of `like`: float64 for float64, float32 otherwise."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        try:
            work = self._spare.pop()
        except IndexError:
            work = None
        if work is None or work.dtype != dtype or work.device != like.device:
            work = Workspace(dtype, like.device)
        yield work
        self._spare.append(work)  # not after an error: nobody knows what it held on to
