"""What finished stages have found, read together for tables and plots."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .plan import Plan
from .playing import PlayedGame, read_games
from .systems import System, system_named


@dataclass(frozen=True)
class Played:
    """A system's games of one seed.

    Attributes:
        system: Which.
        seed: Of its training.
        result: Sums of play.
        games: All of them.
        training: What training took.
    """

    system: System
    seed: int
    result: dict[str, Any]
    games: list[PlayedGame]
    training: dict[str, Any]

    @property
    def wins(self) -> dict[tuple[int, str], bool]:
        """Whether it has won, by seed and game."""
        return {(self.seed, game.game): game.won for game in self.games}


def played(plan: Plan, out: Path, fold: str) -> list[Played]:
    """Return what is finished of a fold, system by system."""
    found = []
    for system, seed in _pairs(plan):
        stage = next((s for s in plan.stages if s.name == f"play/{fold}/{system.name}/{seed}"), None)
        result = stage.result(out) if stage else None
        training = plan.trained(system, seed).result(out)
        if stage is not None and result is not None and training is not None:
            found.append(Played(system, seed, result, read_games(stage.folder(out)), training))
    return found


def results(plan: Plan, out: Path, kind: str) -> Iterator[tuple[System, int, dict[str, Any]]]:
    """Yield the results of one kind of stage (``verbs``, ``curve``): system, seed, result."""
    stages = {stage.name: stage for stage in plan.stages}
    for system, seed in _pairs(plan):
        stage = stages.get(f"{kind}/{system.name}/{seed}")
        result = stage.result(out) if stage else None
        if result is not None:
            yield system, seed, result


def failures(plan: Plan, out: Path) -> list[tuple[str, str]]:
    """Return the stages that have failed and are not finished, and why."""
    found = ((stage.name, stage.failure(out)) for stage in plan.stages)
    return [(name, failure["error"]) for name, failure in found if failure]


def _pairs(plan: Plan) -> list[tuple[System, int]]:
    return [(system_named(name), seed) for name in plan.settings.systems for seed in plan.settings.seeds]
