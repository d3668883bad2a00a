"""What stages 2 and 3 have brought: games won, and what comes after a mistake."""

from pathlib import Path

from .further import VARIANTS
from .plan import Plan
from .playing import PlayedGame, read_games
from .statistics import share
from .systems import system_named
from .table import Table


KINDS = {"alone": "alone", "told": "told of mistakes"}


def further_table(plan: Plan, out: Path) -> Table:
    """Return success and recovery of stages 2 and 3, all seeds together.

    Recovered: of games with a mistake, those in which the action after the first one was the expert's; and those won.
    """
    stages = {stage.name: stage for stage in plan.stages}
    rows = []
    for name in plan.settings.bases if plan.settings.own_games else ():
        for variant, title in (("before", "stage 1"), *((one.name, one.title) for one in VARIANTS)):
            for kind, shown in KINDS.items():
                found = [stages[f"{kind}_{variant}/{name}/{seed}"] for seed in plan.settings.seeds]
                done = [stage for stage in found if stage.is_done(out)]
                games = [game for stage in done for game in read_games(stage.folder(out))]
                if games:
                    rows.append([system_named(name).title, title, shown, len(done), *_cells(games)])
    columns = ("system", "further training", "play", "seeds", "games", "won", "%", "low", "high")
    recovery = (
        "games with a mistake",
        "won of them %",
        "low ",
        "high ",
        "asked next",
        "next right %",
        "low  ",
        "high  ",
    )
    return Table("further", "Stages 2 and 3: games of the test fold, and recovery", columns + recovery, rows)


def _cells(games: list[PlayedGame]) -> list[object]:
    failed = [game for game in games if game.mistakes]
    asked = [game.right_next for game in failed if game.right_next is not None]
    won, recovered = sum(game.won for game in games), sum(game.won for game in failed)
    cells: list[object] = [len(games), won, *_percents(won, len(games))]
    return [*cells, len(failed), *_percents(recovered, len(failed)), len(asked), *_percents(sum(asked), len(asked))]


def _percents(hits: int, cases: int) -> list[str]:
    total = share(hits, cases)
    return [f"{100 * value:.1f}" for value in (total.value, total.low, total.high)] if cases else ["", "", ""]
