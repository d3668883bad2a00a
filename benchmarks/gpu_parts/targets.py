"""What was aimed at, beside what was measured."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .attention_part import BASELINE, KERNELS, TORCHS_CHOICE
from .rows import OK, Row


@dataclass(frozen=True)
class Target:
    """One aim.

    Attributes:
        what: In words.
        wanted: In words.
        measured: In words; None: it was not measured.
        is_met: Whether it is; None: not measured.
    """

    what: str
    wanted: str
    measured: str | None
    is_met: bool | None

    @property
    def verdict(self) -> str:
        """One word."""
        return "unmeasured" if self.is_met is None else "met" if self.is_met else "missed"


def find_targets(attention: Iterable[Row], training: Iterable[Row]) -> list[Target]:
    """Compare rows that were measured well with the aims."""
    attention = [row for row in attention if row["status"] == OK and row["method"] not in (BASELINE, TORCHS_CHOICE)]
    method = next((name for name in KERNELS if any(row["method"] == name for row in attention)), "")
    own = [row for row in attention if row["method"] == method]
    usual = [row for row in own if (row["layout"], row["memory_share"]) == ("scattered", "0.05")]
    at_32k = [row for row in usual if row["tokens"] == "32768"]
    long = [row for row in own if int(row["tokens"]) >= 32768]
    longest = [row for row in own if row["tokens"] == "131072"]
    short_steps = [
        row for row in training if row["status"] == OK and row["tokens"] == "4096" and row["variant"] != "plain"
    ]
    return [
        _least("speed-up over causal, 32k tokens, 5 % memory", at_32k, _number("speed_up"), 6.0, "{:.1f}×"),
        _least("share of the limit, 32k tokens and more", long, _share, 0.8, "{:.0%}"),
        _most("plan, 128k tokens", longest, _number("plan_ms"), 1.0, "{:.2f} ms"),
        _least("speed-up over causal, 4k tokens", [row for row in usual if row["tokens"] == "4096"], _number("speed_up"), 1.0, "{:.2f}×"),
        _most("training step over plain, 4k tokens", short_steps, _number("over_plain"), 1.0, "{:.2f}"),
    ]  # fmt: skip


def _number(name: str) -> Callable[[Row], float | None]:
    return lambda row: float(row[name]) if row.get(name) else None


def _share(row: Row) -> float | None:
    return float(row["speed_up"]) / float(row["limit"]) if row.get("speed_up") else None


def _least(what: str, rows: list[Row], read: Callable[[Row], float | None], bound: float, text: str) -> Target:
    values = [value for row in rows if (value := read(row)) is not None]
    worst = min(values, default=None)
    shown = None if worst is None else text.format(worst)
    return Target(what, f"≥ {text.format(bound)}", shown, None if worst is None else worst >= bound)


def _most(what: str, rows: list[Row], read: Callable[[Row], float | None], bound: float, text: str) -> Target:
    values = [value for row in rows if (value := read(row)) is not None]
    worst = max(values, default=None)
    shown = None if worst is None else text.format(worst)
    return Target(what, f"≤ {text.format(bound)}", shown, None if worst is None else worst <= bound)
