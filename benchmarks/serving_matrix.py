"""The cases that `serve.py` runs where none are named, those that say most first: what is left of them, a later run does."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One load, asked of both engines.

    Attributes:
        load: `prompts` or `turns`.
        tokens: Of a prompt, or of a conversation at its end.
        users: How many ask at once.
        layers: Of the model; long prompts are read by a smaller one.
        answer: Tokens of an answer.
        rounds: How often it runs; the fastest counts.
    """

    load: str
    tokens: int
    users: int
    layers: int
    answer: int
    rounds: int = 1


MATRIX = (
    Case("prompts", 1024, 8, 4, 64, 3),
    Case("prompts", 8192, 8, 2, 256),
    Case("prompts", 16384, 8, 2, 256),
    Case("prompts", 2048, 8, 4, 64, 2),
    Case("prompts", 1024, 1, 4, 64, 3),
    Case("prompts", 8192, 1, 2, 256),
    Case("prompts", 16384, 1, 2, 256),
    Case("prompts", 2048, 1, 4, 64, 3),
    Case("turns", 2048, 8, 4, 16, 2),
    Case("prompts", 1024, 32, 4, 64, 2),
    Case("turns", 8192, 8, 2, 16),
    Case("prompts", 2048, 32, 4, 64),
    Case("prompts", 8192, 32, 2, 256),
    Case("prompts", 16384, 32, 2, 256),
)
"""About 15 minutes of one thread, half of them for the last three."""
