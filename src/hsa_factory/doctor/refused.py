"""What is refused, or cannot run, on this machine as it is set up now."""

import importlib.util
import os
from dataclasses import dataclass

import torch

from ..attention.api import COMPILER_SWITCHES, NEEDS_CUDA, available_backends, flex_obstacle, triton_obstacle
from ..config import BACKENDS
from ..hosts import OTHER_TRAINER_VARIABLES
from ..models.parallelism import check_parallelism
from .machine import find_compiler
from .scrub import scrub


_PACKAGES = {
    "liger_kernel": (
        "enable_liger_kernel",
        "not with messages of a weight other than 0 and 1: it computes the loss itself",
    ),
    "unsloth": ("use_unsloth", "it replaces the attention and the training loop"),
}
"""Packages that are installed, the option that uses them, and why training refuses it."""

_ON = ("true", "y", "1")  # how LLaMA-Factory reads its variables


@dataclass(frozen=True)
class Refusal:
    """One thing that does not work here.

    Attributes:
        what: Backend, option or variable.
        reason: Why.
        advice: What to do; empty: nothing need be done.
    """

    what: str
    reason: str
    advice: str = ""


def find_refusals(device: torch.device, dtype: torch.dtype) -> list[Refusal]:
    """Return what does not work on this device and with these environment variables.

    Args:
        device: Where.
        dtype: Of a model.
    """
    options = [Refusal(*said) for name, said in _PACKAGES.items() if importlib.util.find_spec(name) is not None]
    return [*_backends(device, dtype), *_variables(), *_parallelism(), *options]


def _backends(device: torch.device, dtype: torch.dtype) -> list[Refusal]:
    found = []
    for backend in BACKENDS:
        if backend not in available_backends():
            found.append(Refusal(f"backend: {backend}", "there is no CUDA GPU"))
        elif backend in NEEDS_CUDA and device.type != "cuda":
            found.append(Refusal(f"backend: {backend}", f"needs tensors on CUDA, this is {device.type}"))
    if device.type != "cuda":
        return found

    query = torch.empty((), device=device, dtype=dtype).expand(1, 1, 1, 128)
    for backend, find_obstacle in (("flex", flex_obstacle), ("triton", triton_obstacle)):
        obstacle = find_obstacle(query)
        if obstacle:
            advice = "pip install triton, for GPUs from Volta on" if obstacle == "Triton" else ""
            found.append(Refusal(f"backend: {backend}", f"needs {obstacle}", advice))
        elif find_compiler() is None:
            advice = "install gcc, or name a compiler in the variable CC"
            found.append(Refusal(f"backend: {backend}", "Triton finds no C compiler", advice))
    return found


def _variables() -> list[Refusal]:
    found = [
        Refusal(f"{name} is set", f"training with HSA or Feedback refuses other trainers: {reason}", "unset it")
        for name, reason in OTHER_TRAINER_VARIABLES.items()
        if _is_on(name)
    ]
    found += [
        Refusal(f"{name} is set", "the flex backend needs torch's compiler", "unset it")
        for name in COMPILER_SWITCHES
        if os.environ.get(name) == "1"
    ]
    return found


def _parallelism() -> list[Refusal]:
    try:
        check_parallelism()
    except ValueError as error:
        return [Refusal("context or sequence parallelism", scrub(str(error)))]
    return []


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in _ON
