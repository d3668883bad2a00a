"""What a cache holds, in numbers."""

from dataclasses import dataclass

from transformers.utils import ModelOutput


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
