"""Hierarchical Semantic Attention and feedback training for transformers and LLaMA-Factory."""

from typing import TYPE_CHECKING, Any

from .config import FeedbackConfig, HSAConfig
from .semantics import SemanticType


if TYPE_CHECKING:
    from .models import apply_hsa_patch, disable_hsa, enable_hsa

__version__ = "0.1.0"
__all__ = [
    "FeedbackConfig",
    "HSAConfig",
    "SemanticType",
    "apply_hsa_patch",
    "disable_hsa",
    "enable_hsa",
]


def __getattr__(name: str) -> Any:  # transformers takes seconds to import: only when it is asked for
    if name in {"apply_hsa_patch", "disable_hsa", "enable_hsa"}:
        from . import models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
