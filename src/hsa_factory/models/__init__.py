"""HSA on transformers models."""

from .agents import AgentBatch, AgentReport, Reply, RowReport
from .cache import CacheReport, ConstantTagger, HSACache, RewindableTagger, Settled, Tagger
from .enable import apply_hsa_patch, disable_hsa, enable_hsa, saved_config
from .generation import make_tagger


__all__ = [
    "AgentBatch",
    "AgentReport",
    "CacheReport",
    "ConstantTagger",
    "HSACache",
    "Reply",
    "RewindableTagger",
    "RowReport",
    "Settled",
    "Tagger",
    "apply_hsa_patch",
    "disable_hsa",
    "enable_hsa",
    "make_tagger",
    "saved_config",
]
