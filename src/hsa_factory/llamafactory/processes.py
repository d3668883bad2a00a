"""Whether this process is one of several, or is to start them."""

import os

from llamafactory.extras.misc import get_device_count, is_env_enabled, use_ray


_LAUNCHERS = {
    "LOCAL_RANK": "torchrun, `accelerate launch` and `deepspeed`",
    "OMPI_COMM_WORLD_LOCAL_RANK": "Open MPI",
    "MPI_LOCALRANKID": "Intel MPI",
    "MV2_COMM_WORLD_LOCAL_RANK": "MVAPICH",
}
"""The variable by which each launcher tells a process its number."""


def is_launched() -> bool:
    """Return whether a launcher has started this process as one of those that train together."""
    return any(variable in os.environ for variable in _LAUNCHERS)


def starts_processes() -> bool:
    """Return whether `train` starts torchrun, as LLaMA-Factory does: never in a process that was launched, nor for Ray."""
    if is_launched() or use_ray():
        return False
    return is_env_enabled("FORCE_TORCHRUN") or get_device_count() > 1
