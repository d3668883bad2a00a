"""The key/value cache that lets go of keys which HSA can never see again."""

from .hsa_cache import HSACache
from .report import CacheReport
from .tagger import ConstantTagger, RewindableTagger, Settled, Tagger


__all__ = ["CacheReport", "ConstantTagger", "HSACache", "RewindableTagger", "Settled", "Tagger"]
