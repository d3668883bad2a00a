"""Intervals and tests: what a number of games can tell."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.stats import binomtest


CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """A share of cases with its Wilson interval.

    Attributes:
        hits: Cases that count.
        cases: All cases.
        low: Lower end of the interval.
        high: Upper end.
    """

    hits: int
    cases: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share; NaN of no cases."""
        return self.hits / self.cases if self.cases else math.nan

    def __str__(self) -> str:
        if not self.cases:
            return "–"
        return f"{100 * self.value:.1f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"


def share(hits: int, cases: int) -> Share:
    """Return a share with its Wilson 95 % interval, from 0 to 1 where there are no cases.

    Raises:
        ValueError: If there are more hits than cases, or fewer than none.
    """
    if not 0 <= hits <= cases:
        raise ValueError(f"share: {hits} of {cases} is no share.")
    if not cases:
        return Share(0, 0, 0.0, 1.0)
    interval = binomtest(hits, cases).proportion_ci(CONFIDENCE, method="wilson")
    return Share(hits, cases, float(interval.low), float(interval.high))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and their standard deviation (NaN of fewer than two)."""
    if not values:
        return math.nan, math.nan
    return fmean(values), stdev(values) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class Paired:
    """Two systems on the same games.

    Attributes:
        better: Games that only the first wins.
        worse: Games that only the second wins.
        pairs: All games, of all seeds.
        p: Of the two-sided sign test; 1 where they differ in no game.
    """

    better: int
    worse: int
    pairs: int
    p: float


def compare(first: Mapping[Any, bool], second: Mapping[Any, bool]) -> Paired:
    """Compare two systems game by game, by what both have played.

    Games of several seeds are taken as independent pairs, which they are only as far as seeds differ: the spread over
    seeds says more of what another training would give.

    Args:
        first: Whether it won, by (seed, game).
        second: Likewise.
    """
    both = first.keys() & second.keys()
    better = sum(first[key] and not second[key] for key in both)
    worse = sum(second[key] and not first[key] for key in both)
    p = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return Paired(better, worse, len(both), p)
