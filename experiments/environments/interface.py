"""What an environment is: games are named, observations and actions are text."""

from dataclasses import dataclass
from typing import Any, Protocol


FOLDS = ("train", "dev", "test")


@dataclass(frozen=True, order=True)
class Game:
    """One game; the same values are the same game on every machine.

    Args:
        environment: A name of ``experiments.environments.ENVIRONMENTS``.
        fold: ``train`` to learn from, ``dev`` to choose by, ``test`` to report once.
        seed: Decides rooms, things and the task; the folds' seeds do not overlap.
        options: What else makes the game, as sorted pairs; `option` reads one.
    """

    environment: str
    fold: str
    seed: int
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.fold not in FOLDS:
            raise ValueError(f"Game: fold = {self.fold!r} is not allowed: one of {', '.join(FOLDS)}.")

    def option(self, name: str, default: Any = None) -> Any:
        """Return one of the game's options, or the default."""
        return dict(self.options).get(name, default)

    def __str__(self) -> str:
        options = "".join(f" {name}={value}" for name, value in self.options)
        return f"{self.environment} {self.fold} {self.seed}{options}"


@dataclass(frozen=True)
class Step:
    """What an action led to.

    Args:
        observation: The environment's answer, its own text without spaces at the end.
        score: Between 0 and 1, of the whole game so far.
        done: No further action is taken: won, lost for good, or the limit of steps is reached.
        won: The task is done.
        invalid: The action is none that the environment knew at this place.
        lost: The game can no longer be won, whatever comes.
    """

    observation: str
    score: float
    done: bool
    won: bool
    invalid: bool
    lost: bool = False


class Environment(Protocol):
    """One game at a time; open several to play several at once (`experiments.environments.open_environments`)."""

    key_verbs: tuple[str, ...]
    """What actions begin with that change something or must be remembered: LANDMARK. All others are NOISE."""

    key_answers: str
    """Pattern of the observations that answer such actions: LANDMARK as well."""

    lasting_answers: str
    """Pattern of observations that hold for the whole game, such as a recipe: GLOBAL; empty if there are none."""

    task: str
    """What is to be done, of the present game."""

    def reset(self, game: Game, step_limit: int) -> str:
        """Begin a game and return its first observation; after `step_limit` actions it is done."""

    def step(self, action: str) -> Step:
        """Take an action, in the environment's own words."""

    def valid_actions(self) -> list[str]:
        """Return all actions that the environment takes now, sorted."""

    def expert_action(self) -> str | None:
        """Return a good next action from wherever the game is now; None if it is lost."""

    def last_mistake(self) -> str | None:
        """Return what was wrong with the last action, in words to learn from; None if nothing was."""

    def possible_mistakes(self) -> list[str]:
        """Return texts with all words of `last_mistake`, and others that a survey for a vocabulary may miss."""

    def things(self) -> set[str]:
        """Return the names that stand for one thing, of one word or several, as far as they occur now."""

    def picture(self) -> Any:
        """Return what the agent sees now as a PIL image; None in an environment of text alone."""

    def close(self) -> None:
        """Give back what the environment holds."""
