"""What vLLM calls in each of its processes, by the entry point ``vllm.general_plugins``."""


def register() -> None:
    """Make HSA known to vLLM: architectures, their settings at start, the KV cache. Models without HSA are untouched.

    It may be called any number of times.
    """
