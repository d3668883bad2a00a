"""Runs a function of C on torch's threads: those that vLLM has bound to processors of their own."""

import ctypes
from collections.abc import Callable
from functools import cache

import torch


def _starter() -> Callable[..., None] | None:
    """Return OpenMP's function that lets a team enter a function, of the library that torch has loaded. None: there is none."""
    try:
        start = ctypes.CDLL(None).GOMP_parallel  # LLVM's and Intel's libraries have it, too
    except (AttributeError, OSError):
        return None
    start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    start.restype = None
    return start


_start = _starter()
_alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def team(function: int, tasks: int) -> Callable[[int], None]:
    """Return a function that lets threads enter a function of C, and returns when all are through.

    Args:
        function: The address of a function of C of one address, that of what each thread is told.
        tasks: More threads than these are not asked.
    """
    threads = min(threads_here(), tasks)
    return _team(function, threads)


@cache
def _team(function: int, threads: int) -> Callable[[int], None]:
    if threads < 2 or _start is None:
        return _alone(function)
    start = _start
    return lambda told: start(function, told, threads, 0)


def threads_here() -> int:
    """Return how many threads a team may have."""
    return 1 if _start is None else torch.get_num_threads()
