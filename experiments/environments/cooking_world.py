"""TextWorldExpress CookingWorld: read a recipe, find what it needs in five rooms, cut, cook, prepare, eat."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from .cooking_expert import COOKING, CUTTING, EATEN, IN_VAIN, NOT_SAID, OTHERWISE, UNKNOWN_ACTION, CookingExpert
from .interface import FOLDS, Game, Step
from .java import java_machine


NAME = "cooking"
GAMES_A_FOLD = 100_000
_ROOM = re.compile(r"You are in the ([\w ]+)\.|you see the ([\w ]+)\.")
_DOOR = re.compile(r"(?:you see a closed|Through an open) ([\w -]+ door)")
_DIRECTIONS = ("north", "south", "east", "west")
_APART = {*_DIRECTIONS, *(word.capitalize() for word in _DIRECTIONS), *COOKING, *CUTTING}
_PAIRS = {*(f"{verb} the" for verb in (*COOKING, *CUTTING)), *(f"in {device}" for device in COOKING.values())}
"""One token each: so a recipe's verb and its thing are neighbours, and a tiny model can look one up by the other."""

KEY_VERBS = ("take", "put", "open", "close", "read", "cook", "chop", "slice", "dice", "prepare", "eat")
KEY_ANSWERS = r"(?s)\A(?:You (?:take|put|open|close|fry|roast|grill|chop|slice|dice|eat) |Adding the meal).*"
LASTING_ANSWERS = r"(?s)\AGather all following ingredients.*"
_IN_VAIN = ("You can't move there", "That is already", "Your inventory currently has", "You are unable")


def cooking_games(
    fold: str,
    count: int,
    first: int = 0,
    ingredients: tuple[int, ...] = (1, 2),
    rooms: int = 5,
    distractors: int = 10,
    doors: bool = True,
) -> list[Game]:
    """Name games of a fold. Its recipes prepare the same foods in other ways than those of the other folds.

    TextWorldExpress's own seeds stand in a row, and Java's random numbers begin alike for neighbours: a dining table is
    in no kitchen of the first thousand, and in every second one later. So seeds are spread, the same for all.

    Args:
        fold: ``train``, ``dev`` or ``test``.
        count: How many.
        first: How many of the fold's games to leave out at its beginning.
        ingredients: What recipes need; games take turns.
        rooms: Number of rooms, 1 to 11.
        distractors: Things that no recipe needs, 0 to 10.
        doors: Whether there are doors, all closed at first.

    Raises:
        ValueError: If the fold has not that many games.
    """
    if first < 0 or count < 0 or first + count > GAMES_A_FOLD:
        raise ValueError(
            f"cooking_games: {fold} has games 0 to {GAMES_A_FOLD - 1}, not {first} to {first + count - 1}."
        )
    options = {"distractors": distractors, "doors": doors, "rooms": rooms}
    return [
        Game(
            NAME,
            fold,
            _spread(FOLDS.index(fold) * GAMES_A_FOLD + number),
            tuple(sorted({**options, "ingredients": ingredients[number % len(ingredients)]}.items())),
        )
        for number in range(first, first + count)
    ]


def _spread(number: int) -> int:
    return number * 506_952_113 % 2**31  # odd: no two numbers have one seed


class CookingWorld:
    """One game at a time, in the Java machine that all games of the process share; see `Environment`.

    A wrong cut, a wrong way of cooking (or any, of what is to stay raw) and eating an ingredient are fatal: the game
    ends at once. Everything else can be made good.
    """

    key_verbs: tuple[str, ...] = KEY_VERBS
    key_answers = KEY_ANSWERS
    lasting_answers = LASTING_ANSWERS

    def __init__(self) -> None:
        self.task = ""
        self._generators: dict[str, Any] = {}  # reading the lists of things takes longer than a game
        self._expert = CookingExpert()
        self._mistake: str | None = None

    def reset(self, game: Game, step_limit: int = 50) -> str:
        """Begin a game; its first observation describes the kitchen, or the room one is in."""
        return self._begin(game, step_limit, False)

    def gold_actions(self, game: Game, step_limit: int = 200) -> list[str]:
        """Begin a game and return the actions of TextWorldExpress's own player, some of them invalid or idle."""
        self._begin(game, step_limit, True)
        return list(self._server.getGoldActionSequence())

    def _begin(self, game: Game, step_limit: int, gold: bool) -> str:
        self._server = self._generator(game)
        state = json.loads(self._server.generateNewGameJSON(game.seed, game.fold, gold))
        if state["scoreRaw"] < 0:
            raise ValueError(f"CookingWorld cannot make {game}: {state['observation']}")
        self.task = self._server.getTaskDescription()
        self._limit, self._taken, self._valid, self._look = step_limit, 0, state["validActions"], state["look"]
        observation = state["observation"].rstrip()
        self._expert, self._mistake = CookingExpert(), None
        self._expert.see(None, observation)
        return observation

    def _generator(self, game: Game) -> Any:
        names = {"rooms": "numLocations", "ingredients": "numIngredients", "distractors": "numDistractorItems"}
        parameters = [f"{key}={int(game.option(name))}" for name, key in {**names, "doors": "includeDoors"}.items()]
        options = ",".join(parameters)
        if options not in self._generators:
            server = java_machine().textworldexpress.runtime.PythonInterface()
            message = server.load("cookingworld", options)
            if message:
                raise ValueError(f"CookingWorld cannot make {game}: {message}")
            self._generators[options] = server
        return self._generators[options]

    def step(self, action: str) -> Step:
        """Take an action."""
        action = action.strip()
        invalid = action not in self._valid
        state = json.loads(self._server.stepJSON(action))
        self._valid, self._look = state["validActions"], state["look"]
        self._taken += 1
        won, lost = state["tasksuccess"], state["taskfailure"]
        observation = state["observation"].rstrip()
        self._expert.see(action, observation)
        self._mistake = (
            UNKNOWN_ACTION if invalid else IN_VAIN if observation.startswith(_IN_VAIN) else self._expert.reason
        )
        return Step(observation, state["score"], won or lost or self._taken >= self._limit, won, invalid, lost)

    def valid_actions(self) -> list[str]:
        """Return all actions that CookingWorld takes now, sorted."""
        return sorted(self._valid)

    def expert_action(self) -> str | None:
        """Return the next action of an expert who has read what the agent has read, and no more; None: lost."""
        return self._expert.next_action()

    def last_mistake(self) -> str | None:
        """Return why the last action was fatal, unknown or in vain; None if it was none of these.

        What was fatal is explained by the recipe. If nobody has read it, there is nothing to say.
        """
        return self._mistake

    def possible_mistakes(self) -> list[str]:
        """Return all words of `last_mistake`."""
        return [
            *(text.format(thing="meal", right="fry", wrong="fry") for text in (OTHERWISE, NOT_SAID, EATEN)),
            UNKNOWN_ACTION,
            IN_VAIN,
        ]

    def things(self) -> set[str]:
        """Return the names of all foods, and of what is here; of rooms, doors, directions; how recipes and actions cook."""
        things = {action.partition(" ")[2] for action in self._valid if action.startswith("examine ")}
        rooms = {name for names in _ROOM.findall(self._look) for name in names if name}
        return things | rooms | _APART | _PAIRS | food_names() | set(_DOOR.findall(self._look))

    def picture(self) -> None:
        """There is none."""

    def close(self) -> None:
        """Forget the games; the Java machine stays for others."""
        self._generators.clear()


@cache
def food_names() -> frozenset[str]:
    """Return the names of all foods that CookingWorld knows, from its own list."""
    from textworld_express.constants import BASEPATH

    foods = json.loads((Path(BASEPATH) / "cooking_world.json").read_text("utf-8"))["FOODS_COMPACT"]
    return frozenset(name for food, facts in foods.items() for name in facts.get("names", [food]))
