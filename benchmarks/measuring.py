"""What the benchmarks measure with: clocks, peak memory, and the name of the machine."""

import ctypes
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK_HELP = "cpu (with --threads 1) where others use the machine, too (%(default)s)"


def peak_mib(call: Callable[[], object]) -> float:
    """Return how far the process's memory rises during a call, in MiB; NaN where the system does not say (not Linux)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else freed memory would be taken again unseen
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except (AttributeError, OSError):
        return float("nan")
    before = _status_mib("VmRSS")
    call()
    return max(_status_mib("VmHWM") - before, 0.0)


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def machine() -> str:
    """Name this machine's processor in a few words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
