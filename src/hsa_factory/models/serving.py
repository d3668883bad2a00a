"""Checkpoints that say in their architecture that they have HSA: `serving_checkpoint`, where models are at hand."""

from ..serving_checkpoint import ARCHITECTURES, PREFIX, VISION_ARCHITECTURES, write_serving_architecture


__all__ = ["ARCHITECTURES", "PREFIX", "VISION_ARCHITECTURES", "write_serving_architecture"]
