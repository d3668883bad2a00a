"""Intervals and tests against values from the literature."""

import math

import pytest
from experiments.statistics import compare, share, spread


def test_wilson_interval_of_known_values():
    """Newcombe (1998), table I: 81 of 263 and 0 of 20 (method 3)."""
    some, none = share(81, 263), share(0, 20)
    assert (round(some.low, 4), round(some.high, 4)) == (0.2553, 0.3662)
    assert (round(none.low, 4), round(none.high, 4)) == (0.0, 0.1611)
    assert str(share(126, 200)) == "63.0 % [56, 69]"


def test_a_share_of_nothing_says_nothing():
    assert math.isnan(share(0, 0).value) and (share(0, 0).low, share(0, 0).high) == (0, 1)
    with pytest.raises(ValueError, match="3 of 2"):
        share(3, 2)


def test_spread_is_over_seeds():
    assert spread([0.5, 0.7]) == (pytest.approx(0.6), pytest.approx(math.sqrt(0.02)))
    assert math.isnan(spread([0.5])[1]) and math.isnan(spread([])[0])


def test_sign_test_counts_only_games_that_differ():
    first = {n: n < 12 for n in range(20)}
    second = {n: n in (0, 1, 12, 13) for n in range(20)} | {99: True}
    pair = compare(first, second)
    assert (pair.better, pair.worse, pair.pairs) == (10, 2, 20)
    assert pair.p == pytest.approx(2 * sum(math.comb(12, k) for k in range(3)) / 2**12)
    assert compare(first, first).p == 1
