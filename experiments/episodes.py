"""Episodes: a game, and what was done in it. Gold and expert episodes are played again before they count."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .environments import Environment, Game, Step
from .environments.cooking_world import CookingWorld


IDLE = ("move", "look", "examine", "inventory")
"""First words of actions after which, back in the same place, nothing has changed."""


@dataclass(frozen=True)
class Turn:
    """An action and what it led to; `picture` is what was seen afterwards (None: text alone)."""

    action: str
    step: Step
    picture: Any = None


@dataclass(frozen=True)
class Episode:
    """A game played from its beginning; `picture` is what was seen at first (None: text alone)."""

    game: Game
    task: str
    observation: str
    turns: tuple[Turn, ...]
    picture: Any = None

    @property
    def won(self) -> bool:
        """Whether the task is done."""
        return bool(self.turns) and self.turns[-1].step.won

    @property
    def actions(self) -> list[str]:
        """All actions, in their order."""
        return [turn.action for turn in self.turns]

    def first(self, count: int) -> "Episode":
        """Return the episode up to its first `count` actions."""
        return replace(self, turns=self.turns[:count])


def play(environment: Environment, game: Game, choose: Callable[[], str | None], step_limit: int = 50) -> Episode:
    """Play a game with `choose`, which is asked for each action; None gives up."""
    observation = environment.reset(game, step_limit)
    first_picture = environment.picture()
    turns: list[Turn] = []
    while not (turns and turns[-1].step.done):
        action = choose()
        if action is None:
            break
        step = environment.step(action)
        turns.append(Turn(action, step, environment.picture()))
    return Episode(game, environment.task, observation, tuple(turns), first_picture)


def replay(environment: Environment, game: Game, actions: Iterable[str], step_limit: int = 50) -> Episode:
    """Play a game with given actions; the environment stands where they end."""
    remaining = iter(actions)
    return play(environment, game, lambda: next(remaining, None), step_limit)


def expert_episode(environment: Environment, game: Game, step_limit: int = 50) -> Episode:
    """Let the environment's expert play a game."""
    return play(environment, game, environment.expert_action, step_limit)


def expert_from(environment: Environment, game: Game, actions: Iterable[str], step_limit: int = 50) -> Episode:
    """Play given actions, and let the expert go on; the episode stands as it is if they lost the game."""
    remaining = iter(actions)
    return play(environment, game, lambda: next(remaining, None) or environment.expert_action(), step_limit)


# -- gold episodes of CookingWorld -----------------------------------------------------------------------------


def gold_episode(environment: CookingWorld, game: Game, step_limit: int = 50) -> Episode | None:
    """Return the game's own solution, cleaned and played again; None if it then does not win within the limit."""
    actions = environment.gold_actions(game)
    first = replay(environment, game, actions, step_limit=len(actions) + 1)
    again = replay(environment, game, without_idling(first), step_limit)
    return again if again.won else None


def without_idling(episode: Episode) -> list[str]:
    """Return an episode's actions without those that were refused, and without walks that end where they began."""
    kept: list[tuple[str, str]] = []  # action, and the room after it
    room = _room_in(episode.observation) or ""
    for turn in episode.turns:
        if turn.step.invalid or _was_in_vain(turn.step.observation):
            continue
        idle = turn.action.split()[0] in IDLE
        room = _room_in(turn.step.observation) or room
        if turn.action.split()[0] in ("look", "examine", "inventory") and not turn.step.observation.startswith(
            "Gather"
        ):
            continue
        kept.append((turn.action, room))
        if idle:
            _drop_circle(kept, _room_in(episode.observation) or "")
    return [action for action, _ in kept]


def _drop_circle(kept: list[tuple[str, str]], start: str) -> None:
    """Drop the walk at the end of `kept` that has come back to a room it was in, nothing having been done since."""
    room = kept[-1][1]
    begin = len(kept)
    while begin > 0 and kept[begin - 1][0].startswith("move "):
        begin -= 1
        if (kept[begin - 1][1] if begin else start) == room:
            del kept[begin:]
            return


def _room_in(observation: str) -> str | None:
    head = "You are in the "
    return observation[len(head) : observation.index(".")] if observation.startswith(head) else None


def _was_in_vain(observation: str) -> bool:
    return observation.startswith(("You can't move there", "That is already", "Your inventory currently has"))


TEACHERS: dict[str, Callable[[Any, Game, int], Episode | None]] = {"expert": expert_episode, "gold": gold_episode}
"""Who plays for imitation: an expert who knows what was read and no more, or CookingWorld's own player, who knows all."""


def good_episodes(
    environment: Environment, games: Iterable[Game], teacher: str = "expert", step_limit: int = 50
) -> Iterator[Episode]:
    """Yield the episodes of games that a teacher wins within the limit; see `TEACHERS`."""
    for game in games:
        episode = TEACHERS[teacher](environment, game, step_limit)
        if episode is not None and episode.won:
            yield episode
