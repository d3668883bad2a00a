"""Seconds and memory of what runs on a device."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import wait


def seconds(call: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Return the median of some runs, each waited for, so that what the CPU does for it counts, too."""
    runs = []
    for _ in range(rounds):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        runs.append(time.perf_counter() - start)
    return statistics.median(runs)


def peak_mib(call: Callable[[], Any], device: torch.device) -> float | None:
    """Return the peak memory of a run beyond what was allocated before; None: not known on a CPU."""
    if device.type != "cuda":
        call()
        return None
    gc.collect()  # what a former run has left in circles would count as there before
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    wait(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**20, 1)
