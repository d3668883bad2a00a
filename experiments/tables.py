"""Results as tables: CSV files, and the same as Markdown."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from hsa_factory.whole_files import write_whole

from .further_tables import further_table
from .outcomes import Played, failures, played, results
from .plan import Plan
from .price import price_table
from .statistics import compare, share, spread
from .table import Table


REFERENCE = "dense"


def tables(plan: Plan, out: Path) -> list[Table]:
    """Return all tables of what is finished, some of which may be empty."""
    of_test, of_dev = played(plan, out, "test"), played(plan, out, "dev")
    return [
        success_table(of_test, "success", "Games of the test fold that each system wins"),
        success_table(of_dev, "success_dev", "Games of the dev fold, by which choices were made"),
        cost_table(of_test),
        pair_table(of_test),
        verb_table(plan, out),
        curve_table(plan, out),
        further_table(plan, out),
        price_table(),
        Table("failed", "Parts that failed", ("part", "error"), failures(plan, out)),
    ]


def write_tables(directory: Path, made: Sequence[Table]) -> list[Path]:
    """Write each table as a CSV file, and return the files. Of one that is empty a former report's file is removed."""
    paths = []
    for table in made:
        path = directory / f"{table.name}.csv"
        if table.rows:
            write_whole(path, table.csv())
            paths.append(path)
        else:
            path.unlink(missing_ok=True)
    return paths


def by_system(of_play: Sequence[Played]) -> dict[str, list[Played]]:
    """Return plays by the system's name, in their order."""
    found: dict[str, list[Played]] = {}
    for one in of_play:
        found.setdefault(one.system.name, []).append(one)
    return found


def success_table(of_play: Sequence[Played], name: str, title: str) -> Table:
    """Return wins with their interval over games, and the spread over seeds."""
    rows = []
    for seeds in by_system(of_play).values():
        won, games = sum(one.result["won"] for one in seeds), sum(one.result["games"] for one in seeds)
        lost, total = sum(one.result["lost"] for one in seeds), share(won, games)
        mean, deviation = spread([one.result["won"] / one.result["games"] for one in seeds])
        each = " ".join(f"{100 * one.result['won'] / one.result['games']:.1f}" for one in seeds)
        system = seeds[0].system
        numbers = [f"{100 * value:.1f}" for value in (total.value, total.low, total.high, mean)]
        deviations = "" if deviation != deviation else f"{100 * deviation:.1f}"
        rows.append(
            [
                system.title,
                len(seeds),
                games,
                won,
                *numbers,
                deviations,
                each,
                f"{100 * lost / games:.1f}",
                system.note,
            ]
        )
    columns = (
        "system",
        "seeds",
        "games",
        "won",
        "%",
        "low",
        "high",
        "mean of seeds",
        "sd",
        "each seed",
        "lost %",
        "note",
    )
    return Table(name, title, columns, rows)


def cost_table(of_play: Sequence[Played]) -> Table:
    """Return what each system's memory costs in play, and what its training took."""
    rows = []
    for seeds in by_system(of_play).values():
        read = sum(one.result["read"] for one in seeds)
        cpu = sum(one.result["cpu_seconds"] for one in seeds)
        rows.append(
            [
                seeds[0].system.title,
                f"{fmean(one.result['mean_held'] for one in seeds):.0f}",
                max(one.result["peak_held"] for one in seeds),
                f"{fmean(one.result['mean_visible'] for one in seeds):.0f}",
                f"{read / cpu:.0f}",
                f"{fmean(one.training['tokens'] for one in seeds) / 1e6:.2f}",
                _training_time(seeds),
            ]
        )
    columns = (
        "system",
        "keys held",
        "peak",
        "keys seen",
        "tokens/CPU s in play",
        "M tokens trained",
        "CPU s of training",
    )
    return Table("cost", "Keys in the cache, and processor time (machines are shared: not wall time)", columns, rows)


def _training_time(seeds: Sequence[Played]) -> str:
    """Return the mean processor time of trainings done in one go: others were taken up on other machines or on a GPU."""
    whole = [one.training["cpu_seconds"] for one in seeds if len(one.training.get("parts", ())) < 2]
    return f"{fmean(whole):.0f}" if whole else ""


def pair_table(of_play: Sequence[Played]) -> Table:
    """Return each system against `REFERENCE`, game by game."""
    found = by_system(of_play)
    wins = {name: {key: won for one in seeds for key, won in one.wins.items()} for name, seeds in found.items()}
    rows = []
    for name, seeds in found.items():
        if name != REFERENCE and REFERENCE in wins:
            pair = compare(wins[name], wins[REFERENCE])
            rows.append([seeds[0].system.title, pair.pairs, pair.better, pair.worse, f"{pair.p:.2g}"])
    columns = ("system", "pairs", "only it wins", "only dense wins", "p (sign test)")
    return Table("pairs", "Against dense, on the same games", columns, rows)


def verb_table(plan: Plan, out: Path) -> Table:
    """Return how often the next action of a good player is predicted, by its first word."""
    counts: dict[str, dict[str, list[int]]] = {}
    for system, _, result in results(plan, out, "verbs"):
        verbs = counts.setdefault(system.title, {})
        for verb, (hits, cases) in result["verbs"].items():
            known = verbs.setdefault(verb, [0, 0])
            known[0], known[1] = known[0] + hits, known[1] + cases
    names = list(dict.fromkeys(verb for verbs in counts.values() for verb in verbs))
    rows = [[title, *(_percent(verbs.get(verb)) for verb in names)] for title, verbs in counts.items()]
    sizes = next(iter(counts.values()), {})
    return Table(
        "verbs",
        "Actions of good players that are predicted, %",
        ("system", *(f"{v} ({sizes.get(v, [0, 0])[1]})" for v in names)),
        rows,
    )


def _percent(count: list[int] | None) -> str:
    return f"{100 * count[0] / count[1]:.1f}" if count else ""


def curve_table(plan: Plan, out: Path) -> Table:
    """Return success on the dev fold by tokens trained."""
    rows = []
    for system, seed, result in results(plan, out, "curve"):
        for point in result["points"]:
            total = share(point["won"], point["games"])
            numbers = [f"{100 * value:.1f}" for value in (total.value, total.low, total.high)]
            rows.append([system.title, seed, point["tokens"], point["games"], point["won"], *numbers])
    columns = ("system", "seed", "tokens", "games", "won", "%", "low", "high")
    return Table("curve", "Success on the dev fold against tokens trained", columns, rows)
