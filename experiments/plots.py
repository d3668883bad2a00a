"""Pictures of the tables, drawn from the CSV files alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .table import read_rows


def write_plots(directory: Path, pictures: Path | None = None, prefix: str = "") -> list[Path]:
    """Draw what CSV files in a directory hold, and return the pictures.

    Args:
        directory: Of the tables.
        pictures: Where they are written; None: beside the tables.
        prefix: Of their names.
    """
    kinds = {"success": _bars, "curve": _curves, "cost": _against_cost, "further": _further}
    place = pictures or directory
    made = [_draw(directory, name, draw, place / f"{prefix}{name}.png") for name, draw in kinds.items()]
    return [path for path in made if path is not None]


def _draw(directory: Path, name: str, draw: Any, path: Path) -> Path | None:
    file = directory / f"{name}.csv"
    if not file.is_file():
        path.unlink(missing_ok=True)  # of a former report
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    draw(axes, read_rows(file), directory)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return path


def _numbers(rows: Sequence[dict[str, str]], column: str) -> list[float]:
    return [float(row[column]) for row in rows]


def _errors(rows: Sequence[dict[str, str]]) -> list[list[float]]:
    values, lows, highs = (_numbers(rows, name) for name in ("%", "low", "high"))
    return [[v - low for v, low in zip(values, lows)], [high - v for v, high in zip(values, highs)]]


def _bars(axes: Any, rows: list[dict[str, str]], directory: Path) -> None:
    rows = rows[::-1]
    names = [row["system"] for row in rows]
    axes.barh(names, _numbers(rows, "%"), xerr=_errors(rows), color="#7a9cc6", ecolor="#333333", capsize=3)
    axes.set_xlabel("games won, % (Wilson 95 % interval)")
    axes.set_xlim(0, 100)


def _curves(axes: Any, rows: list[dict[str, str]], directory: Path) -> None:
    for name in dict.fromkeys(row["system"] for row in rows):
        points: dict[int, list[float]] = {}
        for row in rows:
            if row["system"] == name:
                points.setdefault(int(row["tokens"]), []).append(float(row["%"]))
        places = sorted(points)
        axes.plot(
            [p / 1e6 for p in places], [sum(points[p]) / len(points[p]) for p in places], marker="o", ms=3, label=name
        )
    axes.set_xlabel("tokens trained, millions")
    axes.set_ylabel("games of the dev fold won, %")
    axes.legend(fontsize=7, frameon=False)


def _against_cost(axes: Any, rows: list[dict[str, str]], directory: Path) -> None:
    success = {row["system"]: row for row in read_rows(directory / "success.csv")}
    rows = sorted(rows, key=lambda row: -float(success[row["system"]]["%"]))  # the legend reads as the points stand
    for number, row in enumerate(rows):
        name, won = row["system"], success[row["system"]]
        (low,), (high,) = _errors([won])
        look = {"color": "black", "marker": "s"} if name == "dense" else {"marker": "oD^v"[number // 10]}
        axes.errorbar(
            *(float(row["keys held"]), float(won["%"])), yerr=[[low], [high]], ls="none", capsize=3, label=name, **look
        )
    axes.set_xlabel("keys held in the cache, mean")
    axes.set_ylabel("games won, % (Wilson 95 % interval)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.figure.legend(loc="outside right center", fontsize=8, frameon=False)


def _further(axes: Any, rows: list[dict[str, str]], directory: Path) -> None:
    rows = [row for row in rows if row["play"] != "alone"][::-1]
    names = [f"{row['further training']} ({row['system']}, {row['games']} games)" for row in rows]
    axes.barh(names, _numbers(rows, "%"), xerr=_errors(rows), color="#7a9cc6", ecolor="#333333", capsize=2)
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel("games won when told of mistakes, % (Wilson 95 % interval)")
    axes.set_xlim(0, 100)
