"""The machine: processor, memory, GPU; and the device that is asked for."""

import os
import platform
import shutil
from dataclasses import dataclass

import torch

from ..inspection.attention_time import machine_name
from ..user_errors import UserError


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: As the driver says.
        memory_gib: Of the whole GPU.
        free_gib: What other processes leave.
        capability: Compute capability, such as ``9.0``.
        cuda: Version of CUDA that torch was built for.
        others: How many more there are.
    """

    name: str
    memory_gib: float
    free_gib: float
    capability: str
    cuda: str
    others: int


@dataclass(frozen=True)
class Machine:
    """What is measured on.

    Attributes:
        system: Operating system and architecture.
        processor: Its name.
        cores: That this process may use.
        threads: That torch uses.
        memory_gib: Main memory; None: not known.
        compiler: Name of the C compiler that Triton would find; None: there is none.
        device: As asked for.
        gpu: None: the device is the CPU.
    """

    system: str
    processor: str
    cores: int
    threads: int
    memory_gib: float | None
    compiler: str | None
    device: str
    gpu: Gpu | None


def find_device(name: str | None) -> torch.device:
    """Return the device to look at.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:1``; None: CUDA where there is a GPU, else the CPU.

    Raises:
        UserError: If it is another name, or torch sees no such GPU.
    """
    if name is None:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and number.isascii() and number.isdigit())):
        raise UserError(f"--device {name!r}: there is no such device. Known: cpu, cuda, cuda:0, cuda:1, …")
    if kind == "cpu":
        return torch.device("cpu")
    if torch.version.cuda is None:
        raise UserError(
            f"--device {name}: torch {torch.__version__} was built without CUDA. Install a torch built for CUDA, or leave "
            "--device out to look at the CPU."
        )
    if not torch.cuda.is_available():
        raise UserError(
            f"--device {name}: torch {torch.__version__}, built for CUDA {torch.version.cuda}, finds no GPU. See what "
            "`nvidia-smi` and CUDA_VISIBLE_DEVICES say, and whether the driver is new enough; or leave --device out to "
            "look at the CPU."
        )
    count = torch.cuda.device_count()
    if colon and int(number[:9]) >= count:
        raise UserError(f"--device {name}: torch sees {count} GPU{'s' * (count != 1)}, the last is cuda:{count - 1}.")
    return torch.device("cuda", int(number) if colon else torch.cuda.current_device())


def find_machine(device: torch.device) -> Machine:
    """Describe this machine."""
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=machine_name("cpu"),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_gib=_main_memory(),
        compiler=find_compiler(),
        device=str(device),
        gpu=_gpu(device) if device.type == "cuda" else None,
    )


def find_compiler() -> str | None:
    """Return the name of the C compiler that Triton takes, as Triton looks for it; None: there is none."""
    named = os.environ.get("CC")
    if named:
        return os.path.basename(named) if shutil.which(named) else None
    return next((name for name in ("clang", "gcc", "cc") if shutil.which(name)), None)


def _gpu(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    free, _total = torch.cuda.mem_get_info(device)
    return Gpu(
        name=properties.name,
        memory_gib=round(properties.total_memory / 2**30, 1),
        free_gib=round(free / 2**30, 1),
        capability=f"{properties.major}.{properties.minor}",
        cuda=str(torch.version.cuda),
        others=torch.cuda.device_count() - 1,
    )


def _main_memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not everywhere
        return None
