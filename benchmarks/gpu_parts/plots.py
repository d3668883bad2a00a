"""Plots of the rows, where matplotlib is installed."""

from collections.abc import Callable, Iterable
from pathlib import Path

from .rows import OK, Row


def plot_all(directory: Path, attention: Iterable[Row], training: Iterable[Row], decode: Iterable[Row]) -> list[Path]:
    """Write one PNG a part that has rows.

    Args:
        directory: Where to.
        attention: Rows of the part.
        training: Rows of the part.
        decode: Rows of the part.

    Returns:
        The files; none without matplotlib.
    """
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    flex = [row for row in attention if row["status"] == OK and row.get("speed_up")]
    groups = {
        "attention": (_lines(flex, "speed_up", _attention_name), "times faster than causal flash attention"),
        "training": (
            _lines(training, "over_plain", lambda row: f"{row['model']}, {row['variant']}"),
            "step over plain",
        ),
        "decode": (_lines(decode, "tokens_per_second", lambda row: row["variant"]), "tokens a second"),
    }
    paths = []
    for name, (lines, label) in groups.items():
        if lines:
            paths.append(directory / f"{name}.png")
            _plot(paths[-1], lines, label)
    return paths


def _attention_name(row: Row) -> str:
    what = f"turns {row['noise_turns']}" if row["noise_turns"] else f"{float(row['memory_share']):.0%} scattered"
    return f"{row['method']}, heads of {row['head_size']}, {what}"


def _lines(rows: Iterable[Row], column: str, name: Callable[[Row], str]) -> dict[str, list[tuple[int, float]]]:
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["status"] == OK and row.get(column):
            lines.setdefault(name(row), []).append((int(row["tokens"]), float(row[column])))
    return lines


def _plot(path: Path, lines: dict[str, list[tuple[int, float]]], label: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=110)
    axis = figure.subplots()
    for name, points in lines.items():
        axis.plot(*zip(*sorted(points)), "o-", label=name)
    ticks = sorted({tokens for points in lines.values() for tokens, _ in points})
    axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label, xticks=ticks, xticklabels=ticks)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=7, loc="outside right upper")
    figure.savefig(path)
