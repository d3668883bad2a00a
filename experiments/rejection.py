"""Stage 2: what a system has won by itself, and how much of it is mixed with what others have played."""

from collections.abc import Iterable, Sequence

from .conversations import Message, to_messages
from .environments import Environment, Game
from .episodes import replay
from .playing import PlayedGame


PARTS = (3, 1)
"""New samples to old ones, by length of text."""


def own_wins(
    environment: Environment, games: Iterable[Game], played: Iterable[PlayedGame], step_limit: int
) -> list[list[Message]]:
    """Return the conversations of games that a system has won, played again and won again.

    Args:
        environment: In which they are played again.
        games: All of them, in the order of `played`.
        played: What the system did.
        step_limit: Actions a game.
    """
    won = [(game, one.actions) for game, one in zip(games, played, strict=True) if one.won]
    episodes = (replay(environment, game, actions, step_limit) for game, actions in won)
    return [to_messages(episode) for episode in episodes if episode.won]


def mixed(new: Sequence[list[Message]], old: Sequence[list[Message]]) -> list[list[Message]]:
    """Return all new samples and, from the first on, as many old ones as `PARTS` says.

    Raises:
        ValueError: If there is nothing new: the system has won nothing, or made no mistake, in its own games.
    """
    if not new:
        raise ValueError("There is nothing to train on: no game of the system's own became a sample.")
    wanted, taken = sum(map(_length, new)) * PARTS[1] / PARTS[0], []
    for sample in old:
        if wanted <= 0:
            break
        taken.append(sample)
        wanted -= _length(sample)
    return [*new, *taken]


def _length(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)
