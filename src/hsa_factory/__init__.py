"""Hierarchical Semantic Attention and feedback training for transformers and LLaMA-Factory."""

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .config import FeedbackConfig, HSAConfig
from .loss_weights import LossWeightsConfig
from .semantics import SemanticType


if TYPE_CHECKING:
    from .models import apply_hsa_patch, disable_hsa, enable_hsa

__all__ = [
    "FeedbackConfig",
    "HSAConfig",
    "LossWeightsConfig",
    "SemanticType",
    "__version__",
    "apply_hsa_patch",
    "disable_hsa",
    "enable_hsa",
]


def __getattr__(name: str) -> Any:  # transformers takes seconds to import: only when it is asked for
    if name in {"apply_hsa_patch", "disable_hsa", "enable_hsa"}:
        from . import models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
