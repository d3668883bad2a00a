"""What a cache holds, in numbers."""

from collections.abc import Iterable
from dataclasses import dataclass

from transformers.utils import ModelOutput

from .key_table import KeyTable
from .layer import HSACacheLayer


@dataclass
class CacheReport(ModelOutput):
    """What a cache holds.

    Attributes:
        seen_tokens: Tokens that the model has read, padding included.
        kept_tokens: Keys that are still held, in the longest row and the layer that holds most.
        bytes: Memory of all keys and values, spare room included.
    """

    seen_tokens: int | None = None
    kept_tokens: int | None = None
    bytes: int | None = None

    @classmethod
    def of(cls, seen: int, tables: Iterable[KeyTable], layers: Iterable[HSACacheLayer]) -> "CacheReport":
        """Count what stands in a cache's tables and layers."""
        kept = [int(table.keys.is_real.sum(1).max()) for table in tables if table.keys is not None]
        return cls(seen_tokens=seen, kept_tokens=max(kept, default=0), bytes=sum(layer.nbytes() for layer in layers))
