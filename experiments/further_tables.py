"""What stages 2 and 3 have brought: games won, against the control, and what comes after a mistake."""

from collections.abc import Sequence
from pathlib import Path

from .further import CONTROL, VARIANTS
from .plan import Plan
from .playing import PlayedGame, read_games
from .stages import Stage
from .statistics import compare, share
from .systems import system_named
from .table import Table


KINDS = {"alone": "alone", "told": "told of mistakes"}
BEFORE = ("before", "stage 1, no further training")
STAGE_1 = {("alone", "before"): "play/test"}
COLUMNS = (
    "system",
    "further training",
    "play",
    "seeds",
    "M tokens",
    "games",
    "won",
    "%",
    "low",
    "high",
    "each seed",
    "only it wins",
    "only the control wins",
    "p (sign test)",
    "games with a mistake",
    "won of them %",
    "low ",
    "high ",
    "asked next",
    "next right %",
    "low  ",
    "high  ",
)


def further_table(plan: Plan, out: Path) -> Table:
    """Return success and recovery of stages 2 and 3, all seeds together.

    Recovered: of games with a mistake, those in which the action after the first one was the expert's; and those won. The
    control is more imitation, played the same way.
    """
    rows = []
    for name in plan.settings.bases if plan.settings.own_games else ():
        for variant, title in (BEFORE, *((one.name, one.title) for one in VARIANTS)):
            for kind, shown in KINDS.items():
                done = _finished(plan, out, STAGE_1.get((kind, variant), f"{kind}_{variant}") + f"/{name}")
                games = _games(done, out)
                if games:
                    control = _games(_finished(plan, out, f"{kind}_{CONTROL}/{name}"), out)
                    tokens = _tokens(plan, out, f"further_{variant}/{name}")
                    first = [system_named(name).title, title, shown, len(done), tokens]
                    rows.append([*first, *_cells(games, {} if variant == CONTROL else control)])
    return Table("further", "Stages 2 and 3: games of the test fold, and recovery", COLUMNS, rows)


def _finished(plan: Plan, out: Path, name: str) -> list[Stage]:
    known = {stage.name: stage for stage in plan.stages}
    found = (known.get(f"{name}/{seed}") for seed in plan.settings.seeds)
    return [stage for stage in found if stage is not None and stage.is_done(out)]


def _games(done: Sequence[Stage], out: Path) -> dict[tuple[str, str], PlayedGame]:
    """Return games by seed and game."""
    return {
        (stage.name.rpartition("/")[2], game.game): game for stage in done for game in read_games(stage.folder(out))
    }


def _tokens(plan: Plan, out: Path, name: str) -> str:
    made = [result["tokens"] for stage in _finished(plan, out, name) if (result := stage.result(out))]
    return f"{sum(made) / len(made) / 1e6:.2f}" if made else ""


def _cells(played: dict[tuple[str, str], PlayedGame], control: dict[tuple[str, str], PlayedGame]) -> list[object]:
    games = list(played.values())
    failed = [game for game in games if game.mistakes]
    asked = [game.right_next for game in failed if game.right_next is not None]
    won, recovered = sum(game.won for game in games), sum(game.won for game in failed)
    cells: list[object] = [len(games), won, *_percents(won, len(games)), _each_seed(played), *_pair(played, control)]
    return [*cells, len(failed), *_percents(recovered, len(failed)), len(asked), *_percents(sum(asked), len(asked))]


def _each_seed(played: dict[tuple[str, str], PlayedGame]) -> str:
    seeds: dict[str, list[bool]] = {}
    for (seed, _), game in played.items():
        seeds.setdefault(seed, []).append(game.won)
    return " ".join(f"{100 * sum(wins) / len(wins):.1f}" for wins in seeds.values())


def _pair(played: dict[tuple[str, str], PlayedGame], control: dict[tuple[str, str], PlayedGame]) -> list[object]:
    if not played.keys() & control.keys():
        return ["", "", ""]
    pair = compare({key: one.won for key, one in played.items()}, {key: one.won for key, one in control.items()})
    return [pair.better, pair.worse, f"{pair.p:.2g}"]


def _percents(hits: int, cases: int) -> list[str]:
    total = share(hits, cases)
    return [f"{100 * value:.1f}" for value in (total.value, total.low, total.high)] if cases else ["", "", ""]
