"""HSA attention in pure torch."""

from .api import hsa_attention, run_attention
from .backends.reference import reference_attention
from .layer_rules import LayerRules
from .plan import AttentionPlan


__all__ = ["AttentionPlan", "LayerRules", "hsa_attention", "reference_attention", "run_attention"]
