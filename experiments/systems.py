"""What is compared: each system is a way to type tokens, and what attention makes of types."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .conversations import Message, typing_rules
from .environments import Environment, Game


CUT = "."
"""What stands for an observation that was cut away: a text that every vocabulary here has, as a message must not be empty."""

DENSE: dict[str, Any] = {"landmark_decay": 0.0, "noise_decay": 0.0, "noise_window": None}
"""HSA's attention without decay or window: that of the stock model."""


@dataclass(frozen=True)
class System:
    """One way to remember.

    Attributes:
        name: In files and tables.
        title: What people call it.
        hsa: Options of the block ``hsa`` beside ``rules``.
        typing: ``rules``: by the environment's rules; ``none``: all GLOBAL; ``lasting_noise``: the rules, but what holds for
            the whole game is NOISE; ``random``: each message's type is drawn.
        weights_of: Name of the system whose trained weights it uses; None: it is trained itself.
        keep_last: How many observations stay in the text; None: all.
        window_of: Name of the system whose mean number of visible keys becomes the window of all types; None: `hsa` says all.
        note: What a reader must know of it.
    """

    name: str
    title: str
    hsa: Mapping[str, Any] = field(default_factory=dict)
    typing: str = "rules"
    weights_of: str | None = None
    keep_last: int | None = None
    window_of: str | None = None
    note: str = ""

    def options(self, window: int | None = None) -> dict[str, Any]:
        """Return the options of ``hsa`` beside ``rules``.

        Args:
            window: Mean number of visible keys of `window_of`.

        Raises:
            ValueError: If a window is needed and missing.
        """
        if self.window_of is None:
            return dict(self.hsa)
        if window is None:
            raise ValueError(f"{self.name}: its window is that of {self.window_of}, which was not measured.")
        return {**DENSE, **{f"{kind}_window": window for kind in ("global", "landmark", "noise")}}

    def rules(self, environment: Environment) -> list[dict[str, Any]] | None:
        """Return the rules that type its messages; None: there are none."""
        if self.typing in ("none", "random"):
            return None
        return typing_rules(environment, "NOISE" if self.typing == "lasting_noise" else "GLOBAL")


_AGENT = {"noise_decay": 0.02, "noise_window": 64}

SYSTEMS = (
    System("dense", "dense", DENSE, typing="none"),
    System("hsa_002_64", "HSA 0.02/64", _AGENT),
    System("hsa_original", "HSA 0.5/50 (original)", {"noise_decay": 0.5, "noise_window": 50}),
    System("hsa_turns_1", "HSA noise_turns 1", {"noise_turns": 1}),
    System(
        "sliding",
        "sliding window",
        window_of="hsa_002_64",
        typing="none",
        note="window: HSA 0.02/64's mean visible keys",
    ),
    System("hsa_turns_0", "HSA noise_turns 0", {"noise_turns": 0}),
    System("hsa_turns_4", "HSA noise_turns 4", {"noise_turns": 4}),
    System(
        "random_types",
        "random types",
        _AGENT,
        typing="random",
        note="HSA 0.02/64 on types drawn by message, same shares",
    ),
    System(
        "keep_last", "last 4 observations", DENSE, typing="none", keep_last=4, note="older ones cut, text encoded anew"
    ),
    System("recipe_noise", "HSA 0.02/64, recipe NOISE", _AGENT, typing="lasting_noise", note="a case made to lose"),
    System(
        "dense_hsa_late", "dense, HSA 0.02/64 when playing", _AGENT, weights_of="dense", note="never trained with HSA"
    ),
)
"""In the order in which they run: what is most asked first."""


def system_named(name: str) -> System:
    """Return a system by its name.

    Raises:
        ValueError: If there is none.
    """
    for system in SYSTEMS:
        if system.name == name:
            return system
    raise ValueError(f"System {name!r} is not there. Allowed: {', '.join(system.name for system in SYSTEMS)}.")


def random_type(game: Game, number: int, shares: Mapping[str, float]) -> str:
    """Draw the type of a message: the same for the same game and number, in training and in play.

    Args:
        game: Whose episode it is.
        number: Of the message, the task being 0.
        shares: How often each type is to be drawn.
    """
    return random.Random(f"{game} {number}").choices(list(shares), weights=list(shares.values()))[0]


def with_random_types(messages: Sequence[Message], game: Game, shares: Mapping[str, float]) -> list[Message]:
    """Return messages with the key ``semantic_type``, drawn; the task stays GLOBAL."""
    drawn = ["GLOBAL", *(random_type(game, number, shares) for number in range(1, len(messages)))]
    return [{**message, "semantic_type": kind} for message, kind in zip(messages, drawn, strict=True)]


def keep_last(messages: Sequence[Message], observations: int) -> list[Message]:
    """Return messages in which only the last observations have their text; `CUT` stands for the others."""
    places = [number for number, message in enumerate(messages) if message["role"] == "user"]
    cut = set(places[: max(len(places) - observations, 0)])
    return [{**message, "content": CUT} if number in cut else message for number, message in enumerate(messages)]


def cut_samples(messages: Sequence[Message], observations: int, offset: int = 0) -> list[list[Message]]:
    """Return the samples that train on an episode as `keep_last` shows it: each action once.

    A sample ends every `observations` turns. Its last actions, whose observations are there, are trained; the others have
    weight 0, observations that are cut as well.

    Args:
        messages: A whole episode: task, then observation and action in turns.
        observations: How many stay.
        offset: Where the first sample ends, from 0 to `observations` - 1: so that an action stands at each place.
    """
    turns = (len(messages) - 1) // 2
    ends = sorted({*range(offset or observations, turns, observations), turns})
    samples, done = [], 0
    for end in ends:
        part = keep_last(messages[: 1 + 2 * end], observations)
        samples.append([part[0], *({**m, "weight": 0} if n < 2 * done else m for n, m in enumerate(part[1:]))])
        done = end
    return samples
