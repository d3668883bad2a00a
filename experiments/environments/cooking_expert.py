"""A cook who plays CookingWorld by what is written: task, observations, recipe. It looks into no simulator.

It may join at any time: everything it knows comes from the history of actions and answers.
"""

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


COOKING = {"fry": "stove", "roast": "oven", "grill": "barbeque"}
CUTTING = ("chop", "slice", "dice")
TURNED_INTO = {
    "fried": "fry",
    "roasted": "roast",
    "grilled": "grill",
    "chopped": "chop",
    "sliced": "slice",
    "diced": "dice",
}
OTHERWISE = "The recipe says to {right} the {thing}, not to {wrong} it."
NOT_SAID = "The recipe does not say to {wrong} the {thing}."
EATEN = "The recipe needs the {thing}. It is not to be eaten now."
UNKNOWN_ACTION = "That is not possible here. Look around for what there is."
IN_VAIN = "That did not change anything."
FOOD_FIRST, KNIFE_FIRST = ("fridge",), ("cutlery drawer", "kitchen cupboard")

_SENTENCE = re.compile(
    r"(?:In one part of the room you see|There is also|You also see|In another part of the room you see) (.*?)\.(?: |$)"
)
_FURNITURE = re.compile(
    r"(?i:an?) (open )?(.*?),?(?: that (is closed|is empty|has nothing on it|contains .*|has .* on it))?$"
)
_ITEM = re.compile(r"(?:an?|some|the) ((?:(?:raw|fried|roasted|grilled|chopped|sliced|diced) )*)(.*)$")
_EXIT = re.compile(
    r"(?:Through an open [\w -]+ door, to|To) the (North|South|East|West) you see (?:the ([\w ]+)|a closed [\w -]+ door)\."
)
_OPENED_DOOR = re.compile(r"You open the .* door, revealing the (.*)\.")
_DONE = re.compile(
    r"You (take|put|eat|fry|roast|grill|chop|slice|dice|open|close) the ([\w ]+?)(?: (?:in|with) the ([\w ]+))?\."
)


@dataclass
class Exit:
    """A way out of a room: where it leads (None: not known yet), and whether a closed door is in it."""

    room: str | None
    closed: bool


@dataclass
class Room:
    """What is known of a room: its ways out by direction, its furniture that is closed, and what can hold things."""

    exits: dict[str, Exit] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)
    holders: list[str] = field(default_factory=list)


class CookingExpert:
    """Knows what was read, and says what to do next.

    >>> expert = CookingExpert()
    >>> expert.see(None, first_observation)
    >>> expert.see("read cookbook", answer)
    >>> expert.next_action()
    'open fridge'
    """

    def __init__(self) -> None:
        self.recipe: dict[str, list[str]] | None = None  # what is to be done to each ingredient
        self.reason: str | None = None  # why the game is lost; None: it is not
        self._rooms: dict[str, Room] = {}
        self._here = ""
        self._places: dict[str, tuple[str, str]] = {}  # room and furniture of everything seen
        self._carried: list[str] = []
        self._treated: dict[str, list[str]] = {}  # what was done to each thing
        self._eaten: set[str] = set()

    # -- reading -----------------------------------------------------------------------------------------------

    def see(self, action: str | None, observation: str) -> None:
        """Read an action (None: the game begins) and what it led to."""
        if observation.startswith("You are in the "):
            self._enter(action or "", observation)
        elif observation.startswith("Gather all following ingredients"):
            self._read_recipe(observation)
        elif observation.startswith("Inventory"):
            self._carried = [
                self._read_item(line.strip()) for line in observation.splitlines()[1:] if _ITEM.match(line.strip())
            ]
        elif observation == "Adding the meal to your inventory.":
            self._carried = [thing for thing in self._carried if thing not in (self.recipe or ())] + ["meal"]
        elif door := _OPENED_DOOR.match(observation):
            self._rooms[self._here].exits[(action or "").rpartition(" ")[2]] = Exit(door[1], False)
        elif (action or "").startswith("close door to ") and observation.startswith("You close"):
            self._rooms[self._here].exits[(action or "").rpartition(" ")[2]].closed = True
        elif done := _DONE.match(observation):
            self._change(done[1], done[2], done[3], observation)
        self._judge()

    def _enter(self, action: str, text: str) -> None:
        before, self._here = self._here, text[len("You are in the ") : text.index(".")]
        room = self._rooms.setdefault(self._here, Room())
        room.closed, room.holders = [], []
        self._places = {thing: place for thing, place in self._places.items() if place[0] != self._here}
        for sentence in _SENTENCE.findall(text):
            self._read_furniture(room, sentence)
        for direction, beyond in _EXIT.findall(text):
            known = room.exits.get(direction.lower())
            room.exits[direction.lower()] = Exit(beyond or (known.room if known else None), not beyond)
        verb, _, direction = action.partition(" ")
        if verb == "move" and before != self._here:
            self._rooms[before].exits[direction] = Exit(self._here, False)

    def _read_furniture(self, room: Room, sentence: str) -> None:
        match = _FURNITURE.match(sentence)
        if match is None:
            return
        _, name, state = match.groups()
        if state == "is closed":
            room.closed.append(name)
        elif state is not None:
            room.holders.append(name)
            self._read_contents(name, state)

    def _read_contents(self, furniture: str, state: str) -> None:
        match = re.match(r"(?:contains|has) (.*?)(?: on it)?$", state)
        for item in re.split(r",? and |, ", match[1]) if match else ():
            if _ITEM.match(item):
                self._places[self._read_item(item)] = (self._here, furniture)

    def _read_item(self, text: str) -> str:
        match = _ITEM.match(text)
        assert match is not None
        treated = [TURNED_INTO[word] for word in match[1].split() if word in TURNED_INTO]
        if treated:
            self._treated[match[2]] = treated
        return match[2]

    def _read_recipe(self, text: str) -> None:
        ingredients, directions = text.partition("Ingredients:")[2].split("Directions:")
        recipe: dict[str, list[str]] = {line.strip(): [] for line in ingredients.splitlines() if line.strip()}
        for verb, thing in re.findall(r"(\w+) the (.+)", directions):
            recipe[thing.strip()].append(verb)
        self.recipe = recipe

    def _change(self, verb: str, thing: str, place: str | None, observation: str) -> None:
        room = self._rooms[self._here]
        if verb == "take":
            self._places.pop(thing, None)
            self._carried.append(thing)
        elif verb == "put":
            self._carried.remove(thing)
            self._places[thing] = (self._here, place or "")
        elif verb == "eat":
            self._carried.remove(thing)
            self._eaten.add(thing)
        elif verb == "open":
            room.closed = [name for name in room.closed if name != thing]
            room.holders.append(thing)
            contents = observation.partition(f"The {thing} contains ")[2].rstrip(".")
            self._read_contents(thing, f"contains {contents}")
        elif verb == "close":
            room.holders = [name for name in room.holders if name != thing]
            room.closed.append(thing)
        else:
            self._treated.setdefault(thing, []).append(verb)

    def _judge(self) -> None:
        for thing, steps in (self.recipe or {}).items():
            wrong = next((verb for verb in self._treated.get(thing, ()) if verb not in steps), None)
            if thing in self._eaten:
                self.reason = EATEN.format(thing=thing)
            elif wrong is not None:
                right = [verb for verb in steps if (verb in COOKING) == (wrong in COOKING)]
                reason = OTHERWISE if right else NOT_SAID
                self.reason = reason.format(thing=thing, wrong=wrong, right="".join(right))

    # -- acting ------------------------------------------------------------------------------------------------

    def next_action(self) -> str | None:
        """Return a good next action; None if the game is lost (`reason` says why) or over."""
        if self.reason is not None or "meal" in self._eaten:
            return None
        if self.recipe is None:
            return self._read_the_cookbook()
        if "meal" in self._carried:
            return "eat meal"
        if "meal" in self._places:
            return self._fetch("meal")
        return self._use_what_is_carried() or self._gather() or self._finish()

    def _read_the_cookbook(self) -> str:
        if "cookbook" in self._carried or self._places.get("cookbook", ("",))[0] == self._here:
            return self._reach("cookbook") or "read cookbook"
        if "cookbook" in self._places:
            return self._fetch("cookbook")
        return self._explore(())

    def _missing(self, thing: str) -> list[str]:
        return [verb for verb in (self.recipe or {})[thing] if verb not in self._treated.get(thing, ())]

    def _use_what_is_carried(self) -> str | None:
        """Cut and cook what is in hand, if that can be done here."""
        for thing in self.recipe or ():
            for verb in self._missing(thing) if thing in self._carried else ():
                if verb in CUTTING and "knife" in self._carried:
                    return f"{verb} {thing}"
                if verb in COOKING and self._here == self._room_of_device(verb):
                    return f"cook {thing} in {COOKING[verb]}"
        return None

    @staticmethod
    def _room_of_device(verb: str) -> str:
        return "backyard" if verb == "grill" else "kitchen"

    def _gather(self) -> str | None:
        """Go for the nearest of all that is still to be taken, cooked or found; None if nothing is."""
        recipe = self.recipe or {}
        wanted = [thing for thing in recipe if thing not in self._carried]
        if "knife" not in self._carried and any(verb in CUTTING for thing in recipe for verb in self._missing(thing)):
            wanted.append("knife")
        ways = {thing: self._way_to(self._places[thing][0]) for thing in wanted if thing in self._places}
        stations = {
            self._room_of_device(v) for t in recipe if t in self._carried for v in self._missing(t) if v in COOKING
        }
        nearest = min(
            (thing for thing in wanted if ways.get(thing) is not None), key=lambda t: len(ways[t] or ()), default=None
        )
        if nearest is not None:
            return self._fetch(nearest)
        if any(thing not in self._places for thing in wanted):
            first = (KNIFE_FIRST if "knife" in wanted else ()) + (FOOD_FIRST if wanted != ["knife"] else ())
            return self._explore(first)
        for station in sorted(stations):
            way = self._way_to(station)
            if way is None:
                return self._explore(())
            return way[0]
        return None

    def _finish(self) -> str:
        way = self._way_to("kitchen")
        if way is None:
            return self._explore(())
        return way[0] if way else "prepare meal"

    def _fetch(self, thing: str) -> str:
        way = self._way_to(self._places[thing][0])
        if way is None:
            return self._explore(())
        return way[0] if way else self._make_room() or self._reach(thing) or f"take {thing}"

    def _reach(self, thing: str) -> str | None:
        """Open what a thing is in."""
        _, furniture = self._places.get(thing, ("", ""))
        return f"open {furniture}" if furniture in self._rooms[self._here].closed else None

    def _make_room(self) -> str | None:
        """Lay down what is not needed if nothing more can be carried: two things more than the recipe names."""
        needed = {*(self.recipe or ()), "knife", "meal"}
        idle = [thing for thing in self._carried if thing not in needed]
        if self.recipe is None or len(self._carried) < len(self.recipe) + 2 or not idle:
            return None
        room = self._rooms[self._here]
        if room.holders:
            return f"put {idle[0]} in {room.holders[0]}"
        return f"open {room.closed[0]}" if room.closed else None

    def _explore(self, first: Iterable[str]) -> str:
        """Open furniture that `first` names, then look into new rooms, then open everything."""
        here = self._rooms[self._here]
        for name in first:
            if name in here.closed:
                return f"open {name}"
        way = self._way_to(None)
        if way:
            return way[0]
        others = [name for name, room in self._rooms.items() if set(first) & set(room.closed)]
        others += [name for name, room in self._rooms.items() if room.closed]
        for name in others:
            way = self._way_to(name)
            if way is not None:
                return way[0] if way else f"open {here.closed[0]}"
        return "look around"

    def _way_to(self, goal: str | None) -> list[str] | None:
        """Return the actions that lead to a room (None: to any that was never entered); None if no way is known."""
        waiting: deque[tuple[str, list[str]]] = deque([(self._here, [])])
        seen = {self._here}
        while waiting:
            name, way = waiting.popleft()
            if name == goal:
                return way
            for direction, out in self._rooms[name].exits.items():
                steps = [f"open door to {direction}"] * out.closed + [f"move {direction}"]
                if goal is None and (out.room is None or out.room not in self._rooms):
                    return way + steps
                if out.room == goal and goal is not None and goal not in self._rooms:
                    return way + steps
                if out.room in self._rooms and out.room not in seen:
                    seen.add(out.room)
                    waiting.append((out.room, way + steps))
        return None
