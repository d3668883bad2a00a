"""Which turn a message, and each token of a prompt, belongs to."""

import pytest

from hsa_factory.typed.turns import number_messages, number_prompt


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
    names = {"s": "system", "u": "user", "a": "assistant", "f": "function", "o": "observation"}
    assert number_messages([names[role] for role in roles]) == numbers


def test_tokens():
    """The answer's own block is not read; an empty thought follows the last block, pictures stand before the first."""
    roles = ["user", "assistant", "user"]
    assert number_prompt(roles, [2, 1, 2, 9], 5) == [0, 0, 0, 1, 1]
    assert number_prompt(roles, [2, 1, 2, 9], 7, before=2) == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert number_prompt(["user"], [3, 0], 3) == [0, 0, 0]
