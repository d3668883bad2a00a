"""Attention with HSA on a CPU: kernels of ours over vLLM's pages, compiled by numba, which vLLM brings."""

from llvmlite.binding import ffi


def let_vllm_look() -> None:
    """Let an engine start in a process that has imported numba.

    vLLM 0.32 then asks each object in each module for its `__dict__`, and llvmlite's library takes every name that it is asked for as that
    of a function of C: without an answer to this one vLLM fails, whoever imported numba.
    """
    functions = getattr(ffi.lib, "_fntab", None)
    if isinstance(functions, dict):
        functions["__dict__"] = {}  # whatever stands there, if it was asked for before


let_vllm_look()  # for engines that come after this one, of whatever model
