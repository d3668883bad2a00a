"""Writes the tables and plots of what is finished."""

from pathlib import Path

from .plan import Plan


def write_report(plan: Plan, out: Path) -> list[Path]:
    """Write tables and plots into a folder of results, and return the files."""
    return []
