"""Which turn a message belongs to."""

import pytest

from hsa_factory.typed.turns import number_messages


@pytest.mark.parametrize(
    ("roles", "numbers"),
    [
        ("", []),
        ("u", [0]),
        ("sua", [0, 0, 0]),
        ("suauau", [0, 0, 0, 1, 1, 2]),
        ("uaoofaou", [0, 0, 1, 1, 1, 1, 2, 2]),  # results of parallel calls; a call and a text are one reply
        ("aau", [0, 0, 1]),
        ("uus", [0, 0, 0]),
    ],
)
def test_messages(roles, numbers):
    assert number_messages(role in "af" for role in roles) == numbers
