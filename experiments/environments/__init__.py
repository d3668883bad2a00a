"""Environments by name, all behind one small interface."""

from collections.abc import Callable
from typing import Any

from .baby_ai import BabyAI, baby_ai_games, check_minigrid
from .cooking_world import CookingWorld, cooking_games
from .interface import FOLDS, Environment, Game, Step
from .java import check_java


ENVIRONMENTS: dict[str, tuple[Callable[[], Environment], Callable[..., list[Game]]]] = {
    "babyai": (BabyAI, baby_ai_games),
    "cooking": (CookingWorld, cooking_games),
}
"""What opens an environment, and what names its games."""


def open_environments(name: str, count: int = 1) -> list[Environment]:
    """Open an environment several times, to play several games at once.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in ENVIRONMENTS:
        raise ValueError(f"Environment {name!r} is not there. Allowed: {', '.join(ENVIRONMENTS)}.")
    return [ENVIRONMENTS[name][0]() for _ in range(count)]


def check_environment(name: str) -> None:
    """Look whether what an environment needs is installed.

    Raises:
        UserError: Naming what is missing.
    """
    if name == "cooking":
        check_java()
    else:
        check_minigrid()


def games_of(name: str, fold: str, count: int, first: int = 0, **options: Any) -> list[Game]:
    """Name games of an environment's fold, without the fold's first ones."""
    return ENVIRONMENTS[name][1](fold, count, first, **options)


__all__ = [
    "ENVIRONMENTS",
    "FOLDS",
    "Environment",
    "Game",
    "Step",
    "check_environment",
    "games_of",
    "open_environments",
]
