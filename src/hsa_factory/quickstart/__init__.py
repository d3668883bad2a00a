"""From nothing to four loss curves, offline: tiny models, household trajectories, HSA and Feedback."""

from .run import main, run_quickstart


__all__ = ["main", "run_quickstart"]
