"""Sparse attention in portable torch, block by block over the keys in sight."""

from .attention import blockwise_attention


__all__ = ["blockwise_attention"]
