"""What an agent of MiniGrid sees, in words: what it carries, where it faces, and each thing in view with its place."""

from typing import Any


COLOURS = ("blue", "green", "grey", "purple", "red", "yellow")
KINDS = ("ball", "box", "door", "key")
FACING = ("east", "south", "west", "north")


def describe_object(thing: Any) -> str:
    """Return a thing's colour and kind; a door's state as well, unless it is merely closed."""
    state = ""
    if thing.type == "door":
        state = "open " if thing.is_open else "locked " if thing.is_locked else "closed "
    return f"{state}{thing.color} {thing.type}"


def describe_view(world: Any) -> str:
    """Return what the agent of a MiniGrid world sees now.

    >>> describe_view(world)
    'You face north. You carry nothing. You see a wall 3 ahead, a red key 1 ahead 2 left.'
    """
    grid, visible = world.gen_obs_grid()
    middle, bottom = world.agent_view_size // 2, world.agent_view_size - 1
    seen: list[tuple[int, int, str]] = []
    for column in range(grid.width):
        for row in range(grid.height):
            thing, ahead, right = grid.get(column, row), bottom - row, column - middle
            if thing is None or not visible[column, row] or (ahead == 0 and right == 0):
                continue
            if thing.type != "wall":
                seen.append((ahead, right, describe_object(thing)))
            elif ahead == 0 or right == 0:
                seen.append((ahead, right, "wall"))
    carried = describe_object(world.carrying) if world.carrying is not None else None
    things = ", ".join(f"a {name} {_place(ahead, right)}" for ahead, right, name in _nearest_first(seen)) or "nothing"
    hands = f"a {carried}" if carried else "nothing"
    return f"You face {FACING[world.agent_dir]}. You carry {hands}. You see {things}."


def _nearest_first(seen: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Order by distance, and keep of the walls straight ahead, left and right the nearest only."""
    ordered = sorted(seen, key=lambda place: (place[0] + abs(place[1]), place))
    kept, walls = [], set()
    for ahead, right, name in ordered:
        side = (ahead > 0, right > 0, right < 0)
        if name == "wall" and side in walls:
            continue
        if name == "wall":
            walls.add(side)
        kept.append((ahead, right, name))
    return kept


def _place(ahead: int, right: int) -> str:
    parts = [f"{ahead} ahead"] if ahead else []
    if right:
        parts.append(f"{abs(right)} {'right' if right > 0 else 'left'}")
    return " ".join(parts)
