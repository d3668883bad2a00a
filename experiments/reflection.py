"""Stage 3: a system's own play up to a mistake, what was wrong with it, and an expert who goes on from there."""

from collections.abc import Iterable
from dataclasses import dataclass

from .conversations import Message, feedback_text, to_messages
from .environments import Environment, Game
from .episodes import expert_from, replay
from .playing import PlayedGame


@dataclass(frozen=True)
class Mistake:
    """A mistake in a game.

    Attributes:
        before: Actions up to it that changed something.
        action: The mistake.
        reason: What was wrong.
        observation: What the environment said.
        is_fatal: Whether the game was lost by it, so that it must be undone.
    """

    before: tuple[str, ...]
    action: str
    reason: str
    observation: str
    is_fatal: bool


def find_mistake(environment: Environment, game: Game, actions: Iterable[str], step_limit: int) -> Mistake | None:
    """Return the mistake that lost a game, else the first; None if there is none that can be explained.

    Earlier mistakes have changed nothing, and are left out of what stands before it.
    """
    environment.reset(game, step_limit)
    before: list[str] = []
    first = None
    for action in actions:
        step, reason = environment.step(action), environment.last_mistake()
        if reason is None:
            before.append(action)
        else:
            found = Mistake(tuple(before), action, reason, step.observation, step.lost)
            first = found if first is None or step.lost else first
        if step.done:
            break
    return first


def reflect(environment: Environment, game: Game, mistake: Mistake, step_limit: int) -> list[Message] | None:
    """Return the conversation of a mistake and of the expert's way out; None if the expert does not win from there."""
    own = replay(environment, game, mistake.before, step_limit)
    whole = expert_from(environment, game, mistake.before, step_limit)  # nothing of the mistake is left
    if not whole.won or whole.actions[: len(mistake.before)] != list(mistake.before):
        return None
    messages, ahead = to_messages(whole), 2 + 2 * len(own.turns)
    told = [
        {"role": "assistant", "content": mistake.action},
        {"role": "user", "content": feedback_text(mistake.reason, mistake.observation)},
    ]
    return [*messages[:ahead], *told, *messages[ahead:]]


def reflections(
    environment: Environment, games: Iterable[Game], played: Iterable[PlayedGame], step_limit: int
) -> tuple[list[list[Message]], int]:
    """Return the conversations of all games that hold a mistake, and how many of the mistakes were fatal."""
    samples, fatal = [], 0
    for game, one in zip(games, played, strict=True):
        mistake = find_mistake(environment, game, one.actions, step_limit)
        sample = reflect(environment, game, mistake, step_limit) if mistake is not None else None
        if mistake is not None and sample is not None:
            samples.append(sample)
            fatal += mistake.is_fatal
    return samples, fatal
