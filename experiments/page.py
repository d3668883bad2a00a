"""Makes the tables and pictures of docs/evidence.md from the committed results: ``python -m experiments.page``."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from hsa_factory.whole_files import write_whole

from .plots import write_plots
from .table import Row, Table, read_rows


ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "evidence.md"
IMAGES = ROOT / "docs" / "images"
START, END = "<!-- {}:start -->", "<!-- {}:end -->"


def rows_of(name: str, results: Path = RESULTS) -> list[Row]:
    """Return the rows of a table; none if it is not there."""
    file = results / f"{name}.csv"
    return read_rows(file) if file.is_file() else []


def success_markdown(results: Path) -> str:
    """Return games won and keys held by system, and each against dense."""
    costs = {row["system"]: row for row in rows_of("cost", results)}
    pairs = {row["system"]: row for row in rows_of("pairs", results)}
    lines: list[Sequence[object]] = []
    for row in rows_of("success", results):
        cost, pair = costs[row["system"]], pairs.get(row["system"])
        against = f"{pair['only it wins']} : {pair['only dense wins']}, p {pair['p (sign test)']}" if pair else ""
        held = f"{cost['keys held']} ({cost['peak']})"
        lines.append([row["system"], row["games"], _interval(row), row["each seed"], against, held, cost["keys seen"]])
    columns = ("system", "games", "won, %", "each seed", "only it : only dense wins", "keys held (peak)", "keys seen")
    return _markdown(columns, lines)


def verbs_markdown(results: Path) -> str:
    """Return how many actions of good players are predicted, by verb."""
    rows = rows_of("verbs", results)
    return _markdown(tuple(rows[0]), [list(row.values()) for row in rows]) if rows else _missing()


def further_markdown(results: Path) -> str:
    """Return what further training has brought."""
    lines: list[Sequence[object]] = []
    for row in rows_of("further", results):
        pair = [row[name] for name in ("only it wins", "only the control wins", "p (sign test)")]
        recovered = _interval(row, "won of them %", "low ", "high ") if row["won of them %"] else ""
        right = _interval(row, "next right %", "low  ", "high  ") if row["next right %"] else ""
        against = f"{pair[0]} : {pair[1]}, p {pair[2]}" if pair[2] else ""
        lines.append(
            [
                row["system"],
                row["further training"],
                row["play"],
                row["games"],
                _interval(row),
                against,
                f"{row['games with a mistake']}: {recovered}",
                f"{row['asked next']}: {right}",
            ]
        )
    columns = (
        "system",
        "further training",
        "play",
        "games",
        "won, %",
        "only it : only the control wins",
        "games with a mistake: won of them, %",
        "next action asked: right, %",
    )
    return _markdown(columns, lines)


def price_markdown(results: Path) -> str:
    """Return time and memory by length."""
    rows = rows_of("price", results)
    return _markdown(tuple(rows[0]), [list(row.values()) for row in rows]) if rows else _missing()


def about_markdown(results: Path) -> str:
    """Return what is finished, what failed, and where it ran."""
    file = results / "about.json"
    if not file.is_file():
        return _missing()
    about = json.loads(file.read_text("utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    failed = rows_of("failed", results)
    lines = [
        f"- {about['finished']} of {about['parts']} parts are finished; {len(failed)} failed and are not in the tables; "
        f"{about['failures before they succeeded']} failures before a success.",
        f"- Git revisions of the code that ran: {', '.join(about['git revisions'])}. {about['CPU seconds']:,} CPU seconds in all.",
        f"- Trainings by device (one that was stopped may stand at two): "
        f"{', '.join(f'{name} {count}' for name, count in about['trained on'].items())}.",
        f"- {versions}.",
    ]
    return "\n".join([*lines, *(f"- {row['part']}: {row['error']}" for row in failed)])


SECTIONS: dict[str, Callable[[Path], str]] = {
    "success": success_markdown,
    "babyai": lambda results: success_markdown(results / "babyai"),
    "verbs": verbs_markdown,
    "further": further_markdown,
    "price": price_markdown,
    "about": about_markdown,
}


def page_with_results(text: str, results: Path = RESULTS) -> str:
    """Return a page with the tables between its markers."""
    for name, made in SECTIONS.items():
        start, end = START.format(name), END.format(name)
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if found and closed:
            text = f"{before}{start}\n{made(results)}\n{end}{after}"
    return text


def _interval(row: Row, value: str = "%", low: str = "low", high: str = "high") -> str:
    return f"{row[value]} [{float(row[low]):.0f}, {float(row[high]):.0f}]"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return Table("", "", columns, rows).markdown() if rows else _missing()


def _missing() -> str:
    return "*Not finished yet.*"


def main() -> None:
    """Write the page and its pictures."""
    argparse.ArgumentParser(prog="python -m experiments.page", description=__doc__).parse_args()
    write_whole(PAGE, page_with_results(PAGE.read_text("utf-8")))
    write_plots(RESULTS, IMAGES, "evidence_")


if __name__ == "__main__":
    main()
