"""HSA on transformers models."""

from .cache import CacheReport, ConstantTagger, HSACache, RewindableTagger, Settled, Tagger
from .enable import apply_hsa_patch, disable_hsa, enable_hsa, saved_config
from .generation import make_tagger


__all__ = [
    "CacheReport",
    "ConstantTagger",
    "HSACache",
    "RewindableTagger",
    "Settled",
    "Tagger",
    "apply_hsa_patch",
    "disable_hsa",
    "enable_hsa",
    "make_tagger",
    "saved_config",
]
