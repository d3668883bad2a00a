"""Matrices of which `make test` runs one half and `make test-long` the other."""

from itertools import product

import pytest


def half_long(*factors):
    """Return all combinations for `parametrize`; every second one is marked as long, as the fields of a chessboard are.

    The other half still meets each value of each factor, and of three and more factors each pair of values.

    Args:
        *factors: The values of each, two at least.
    """
    assert all(len(values) > 1 for values in factors), "a factor of one value halves nothing, and others lose pairs"
    combinations = []
    for places in product(*(range(len(values)) for values in factors)):
        marks = [pytest.mark.long] * (sum(places) % 2)
        combinations.append(pytest.param(*(values[place] for values, place in zip(factors, places)), marks=marks))
    return combinations


def rest_long(values, kept):
    """Return all values for `parametrize`; those that are not among the kept ones are marked as long."""
    return [value if value in kept else pytest.param(value, marks=pytest.mark.long) for value in values]
