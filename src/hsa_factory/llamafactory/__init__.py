"""The only place that imports llamafactory: HSA and Feedback in its pipeline, without a fork."""

from .integration import Integration, integrate


__all__ = ["Integration", "integrate"]
