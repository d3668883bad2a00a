"""HSA on transformers models."""

from .enable import apply_hsa_patch, disable_hsa, enable_hsa, saved_config


__all__ = ["apply_hsa_patch", "disable_hsa", "enable_hsa", "saved_config"]
