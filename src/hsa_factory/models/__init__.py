"""HSA on transformers models."""

from .cache.hsa_cache import HSACache
from .enable import apply_hsa_patch, disable_hsa, enable_hsa, saved_config


__all__ = ["HSACache", "apply_hsa_patch", "disable_hsa", "enable_hsa", "saved_config"]
