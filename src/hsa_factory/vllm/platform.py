"""Which attention and which interfaces of vLLM serve on the machine at hand."""

from typing import Any

from vllm.platforms import current_platform

from .attention import HSABackend


def attention_here() -> type[HSABackend]:
    """Return the attention of layers with HSA; what it is made with is there on its own machines only."""
    if current_platform.is_cuda():
        from .paged.backend import PagedHSABackend

        return PagedHSABackend
    from .cpu.backend import CPUHSABackend

    return CPUHSABackend


class KnownToRunnerV2:
    """What a model says to vLLM's model runner V2, which runs on GPUs: who is to be told of its requests."""

    @classmethod
    def get_model_state_cls(cls) -> type[Any]:
        """Return the class."""
        from .paged.model_state import HSAModelState  # with Triton: not there on a CPU

        return HSAModelState
