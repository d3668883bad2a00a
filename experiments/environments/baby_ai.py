"""BabyAI of MiniGrid: rooms, doors, keys and a mission. What the agent sees is told in words, and drawn if wanted."""

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

from hsa_factory.user_errors import UserError

from .grid_view import COLOURS, KINDS, describe_object, describe_view
from .interface import FOLDS, Game, Step


NAME = "babyai"
LEVELS = ("KeyCorridorS6R3", "BossLevel")
GAMES_A_FOLD = 1_000_000
ACTIONS = {"turn left": 0, "turn right": 1, "move forward": 2, "pick up": 3, "drop": 4, "toggle": 5}
UNKNOWN_ACTION = f"That is no action. There are {', '.join(ACTIONS)}."
IN_VAIN = "That did not change anything."
FATAL = "That made the mission impossible."
RARE_TEXTS = (
    "go to the red object, then pick up a blue key and open the door after you put the box next to an object",
    "on your left right, in front of you, behind you, open closed locked, a wall 1 2 3 4 5 6 ahead left right",
    "You pick up the drop open close unlock. You face north south east west. You carry nothing. You see nothing.",
    "a ball a key a box a door, red green blue purple yellow grey",
)
TILE = 16
"""Side of a cell in a picture; 7 by 7 cells are 112 by 112 pixels."""


def baby_ai_games(
    fold: str,
    count: int,
    first: int = 0,
    levels: Sequence[str] = LEVELS,
    pictures: bool = False,
    words: bool = True,
) -> list[Game]:
    """Name games of a fold: the same levels, other seeds.

    Args:
        fold: ``train``, ``dev`` or ``test``.
        count: How many.
        first: How many of the fold's games to leave out at its beginning.
        levels: Names of BabyAI levels without ``BabyAI-`` and ``-v0``; games take turns.
        pictures: Whether what the agent sees is drawn as well.
        words: Whether it is told; otherwise observations are events only, most of them empty.

    Raises:
        ValueError: If the fold has not that many games.
    """
    if first < 0 or count < 0 or first + count > GAMES_A_FOLD:
        raise ValueError(
            f"baby_ai_games: {fold} has games 0 to {GAMES_A_FOLD - 1}, not {first} to {first + count - 1}."
        )
    start = FOLDS.index(fold) * GAMES_A_FOLD
    more = (("pictures", pictures), *(() if words else (("words", False),)))
    return [
        Game(NAME, fold, start + number, (("level", levels[number % len(levels)]), *more))
        for number in range(first, first + count)
    ]


def check_minigrid() -> None:
    """Look whether BabyAI can be started; it registers its levels.

    Raises:
        UserError: If the package minigrid is missing.
    """
    try:
        import gymnasium  # noqa: F401
        import minigrid  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"BabyAI needs the package minigrid ({error}): pip install 'hsa-factory[experiment]'."
        ) from None


def check_levels(levels: Sequence[str]) -> None:
    """Look whether BabyAI has these levels.

    Raises:
        UserError: Naming one that it has not, and all that it has; or if minigrid is missing.
    """
    check_minigrid()
    import gymnasium

    known = sorted(name[len("BabyAI-") : -len("-v0")] for name in gymnasium.registry if name.startswith("BabyAI-"))
    for level in levels:
        if level not in known:
            raise UserError(f"BabyAI has no level {level!r}. It has {', '.join(known)}.")


class BabyAI:
    """One game at a time; see `Environment`.

    The expert is BabyAI's own bot. It knows what has been in view, of the simulator and not of the text, and fails in
    some games of BossLevel; `expert_action` is None then.
    """

    key_verbs: tuple[str, ...] = ("pick up", "drop", "toggle")
    key_answers = r"(?s)\A(?:<image>)?You (?:pick up|drop|open|close|unlock) .*"
    lasting_answers = ""

    def __init__(self) -> None:
        self.task = ""
        self._worlds: dict[str, Any] = {}
        self._bot: Any = None
        self._advice: int | None = None
        self._mistake: str | None = None

    def reset(self, game: Game, step_limit: int = 100) -> str:
        """Begin a game; the mission is its task."""
        self._world = self._open(game.option("level"))
        with contextlib.redirect_stdout(io.StringIO()):  # it prints each mission that it throws away
            self._world.reset(seed=game.seed)
        self.task, self._draws = self._world.mission, game.option("pictures", False)
        self._tells = game.option("words", True)
        self._limit, self._taken, self._done, self._score = step_limit, 0, False, 0.0
        self._mistake = None
        self._begin_bot()
        return self._view()

    def _view(self) -> str:
        return describe_view(self._world) if self._tells else ""

    def _open(self, level: str) -> Any:
        if level not in self._worlds:
            check_minigrid()
            import gymnasium

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._worlds[level] = gymnasium.make(f"BabyAI-{level}-v0", disable_env_checker=True).unwrapped
        return self._worlds[level]

    def _begin_bot(self) -> None:
        from minigrid.utils.baby_ai_bot import BabyAIBot

        self._advice, self._bot = None, None
        self._advise(lambda: setattr(self, "_bot", BabyAIBot(self._world)), None)

    def _advise(self, begin: Any, taken: int | None) -> None:
        """Ask the bot for its next action: it must be told of each that was taken."""
        try:
            begin()
            self._advice = int(self._bot.replan(taken)) if self._bot is not None else None
        except Exception:  # the bot gives up with assertions, and with errors of several kinds
            self._bot, self._advice = None, None

    def step(self, action: str) -> Step:
        """Take an action; a name that is none costs a step and changes nothing."""
        action = action.strip()
        self._taken += 1
        if action not in ACTIONS:
            self._mistake = UNKNOWN_ACTION
            return Step(f"{UNKNOWN_ACTION} {self._view()}".rstrip(), 0.0, self._taken >= self._limit, False, True)
        before = self._state()
        _, reward, ended, out_of_time, _ = self._world.step(ACTIONS[action])
        won = ended and reward > 0
        lost = ended and not won
        self._mistake = FATAL if lost else IN_VAIN if before == self._state() else None
        if not (ended or out_of_time):
            self._advise(lambda: None, ACTIONS[action])
        event = self._event(action, before)
        done = ended or out_of_time or self._taken >= self._limit
        return Step(f"{event}{self._view()}".rstrip(), float(won), done, won, False, lost)

    def _state(self) -> tuple[Any, ...]:
        front = self._world.grid.get(*self._world.front_pos)
        place = (tuple(self._world.agent_pos), self._world.agent_dir)
        return (*place, self._world.carrying, front, front.encode() if front is not None else None)

    def _event(self, action: str, before: tuple[Any, ...]) -> str:
        """Say what an action did to a thing; moving and turning show in what is seen."""
        after = self._state()
        if before == after:
            return f"{IN_VAIN} "
        carried, front = before[2], before[3]
        if action == "pick up":
            return f"You pick up the {describe_object(front)}. "
        if action == "drop":
            return f"You drop the {describe_object(carried)}. "
        if action != "toggle":
            return ""
        if front.type != "door":
            return f"You open the {describe_object(front)}. "
        was_locked, is_open = before[4][2] == 2, after[4][2] == 0
        return f"You {'unlock' if was_locked else 'open' if is_open else 'close'} the {front.color} door. "

    def valid_actions(self) -> list[str]:
        """Return all actions: BabyAI takes each of them everywhere, though some change nothing."""
        return sorted(ACTIONS)

    def expert_action(self) -> str | None:
        """Return the bot's next action; None if it does not know one."""
        names = {number: name for name, number in ACTIONS.items()}
        return names.get(self._advice) if self._advice is not None else None

    def last_mistake(self) -> str | None:
        """Return what was wrong with the last action; None if nothing was."""
        return self._mistake

    def possible_mistakes(self) -> list[str]:
        """Return all words of `last_mistake`, and those of rare missions and events."""
        return [UNKNOWN_ACTION, IN_VAIN, FATAL, *RARE_TEXTS]

    def things(self) -> set[str]:
        """Return all things in all colours, and all actions: each is one token."""
        return {f"{colour} {kind}" for colour in COLOURS for kind in KINDS} | set(ACTIONS)

    def picture(self) -> Any:
        """Return what the agent sees, 112 by 112 pixels; None unless the game's option ``pictures`` is set."""
        if not self._draws:
            return None
        from PIL import Image

        return Image.fromarray(self._world.get_pov_render(tile_size=TILE))

    def close(self) -> None:
        """Close all levels."""
        for world in self._worlds.values():
            world.close()
        self._worlds.clear()
