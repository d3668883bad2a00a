"""What vLLM calls in each of its processes, by the entry point ``vllm.general_plugins``."""

from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP

from ..serving_checkpoint import ARCHITECTURES, PREFIX, VISION_ARCHITECTURES


def register() -> None:
    """Make HSA known to vLLM: architectures, their settings at start, the KV cache. Models without HSA are untouched.

    Checkpoints with HSA are refused by every architecture that would serve them without.

    It may be called any number of times.
    """
    from .at_start import HSAModelConfig, guarded  # here: vLLM loads plugins before it is imported whole
    from .kv_cache import register_kv_cache

    register_kv_cache()
    for name in ARCHITECTURES:
        module = "vision_models" if name in VISION_ARCHITECTURES else "models"
        ModelRegistry.register_model(f"{PREFIX}{name}", f"hsa_factory.vllm.{module}:{PREFIX}{name}")
        MODELS_CONFIG_MAP[f"{PREFIX}{name}"] = HSAModelConfig
    for name in {*ModelRegistry.get_supported_archs(), *MODELS_CONFIG_MAP}:
        MODELS_CONFIG_MAP[name] = guarded(MODELS_CONFIG_MAP.get(name))
