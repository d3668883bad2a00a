"""Preference pairs from trajectories: a reply that feedback judged wrong, and the one that corrects it."""

from .options import PairOptions
from .sample_pairs import feedback_pairs


__all__ = ["PairOptions", "feedback_pairs"]
