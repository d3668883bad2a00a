"""The only place that imports llamafactory: HSA and Feedback in its pipeline, without a fork."""

from .integration import integrate
from .state import Integration


__all__ = ["Integration", "integrate"]
