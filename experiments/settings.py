"""How large the experiment is: the full tables, the quick form, the long form."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .systems import SYSTEMS


@dataclass(frozen=True)
class Phase:
    """A part of training with a cosine of its own."""

    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Training:
    """How a system is trained; all systems alike.

    Attributes:
        phases: One after the other; the optimizer begins anew in each.
        rows: Packed rows a batch.
        row_tokens: Tokens of a packed row, at most; episodes in it do not see each other.
        observation_weight: Of the loss on the environment's words.
        saves: How often in a phase a checkpoint is kept for the curve, the last one included.
    """

    phases: tuple[Phase, ...] = (Phase(900, 5e-3), Phase(800, 3e-3))
    rows: int = 2
    row_tokens: int = 1300
    observation_weight: float = 0.1
    saves: int = 3

    @property
    def steps(self) -> int:
        """Of all phases."""
        return sum(phase.steps for phase in self.phases)


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        name: Of the form.
        environment: A name of ``experiments.environments.ENVIRONMENTS``.
        options: Of the games, besides what the environment's own say.
        words: Whether each word and mark is a token, instead of things and frequent phrases.
        seeds: Of training: weights, order of the data, play that is sampled.
        systems: Names, in the order in which they run.
        gold_games: Of the train fold, played well.
        teacher: Who plays them, a name of ``experiments.episodes.TEACHERS``.
        survey_games: Of the train fold, for the vocabulary.
        dev_games: To choose by.
        curve_games: Of the dev fold, that each checkpoint plays; 0: there is no curve.
        curve_systems: Whose checkpoints play.
        test_games: To report, once.
        step_limit: Actions a game.
        positions: Tokens of a game that the model may read at most: also of one in which somebody walks in circles.
        training: Of stage 1.
        own_games: Of the train fold, that a trained system plays itself for stages 2 and 3; 0: these stages are left out.
        bases: Systems whose weights stages 2 and 3 go on with.
        further: How stages 2 and 3 train.
        preference: How pairs are trained, which are not packed: `Training.rows` are pairs. A phase of 0 steps has as many as
            bring the tokens of `further`.
        feedback_messages: How many a game may bring, at most, where feedback is given in play.
    """

    name: str = "full"
    environment: str = "cooking"
    options: Mapping[str, Any] = field(default_factory=lambda: {"rooms": 5, "doors": False, "distractors": 10})
    words: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)
    systems: tuple[str, ...] = tuple(system.name for system in SYSTEMS)
    gold_games: int = 9000
    teacher: str = "expert"
    survey_games: int = 300
    dev_games: int = 200
    curve_games: int = 100
    curve_systems: tuple[str, ...] = ("dense", "hsa_002_64", "hsa_original", "sliding")
    test_games: int = 400
    step_limit: int = 50
    positions: int = 8192
    training: Training = field(default_factory=Training)
    own_games: int = 2000
    bases: tuple[str, ...] = ("dense", "hsa_002_64")
    further: Training = field(default_factory=lambda: Training(phases=(Phase(400, 1e-3),), saves=1))
    preference: Training = field(default_factory=lambda: Training(phases=(Phase(0, 5e-5),), rows=8, saves=1))
    feedback_messages: int = 3

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Return what `Settings.to_dict` has made plain."""

    def training(given: Mapping[str, Any]) -> Training:
        return Training(**{**given, "phases": tuple(Phase(**phase) for phase in given["phases"])})

    plain: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
    trainings: dict[str, Any] = {name: training(values[name]) for name in ("training", "further", "preference")}
    return Settings(**{**plain, **trainings})


FORMS = {
    "full": Settings(),
    "quick": Settings(
        name="quick",
        seeds=(0,),
        systems=("dense", "hsa_002_64", "sliding"),
        gold_games=6000,
        dev_games=0,
        curve_games=0,
        test_games=200,
        training=Training(saves=1),
        own_games=0,
    ),
}
