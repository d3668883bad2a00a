"""Stages 2 and 3 of a plan: what a trained system has played itself, what is made of it, and who learns more from it."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from hsa_factory import HSAConfig
from hsa_factory.cli import main as hsa_factory
from hsa_factory.user_errors import UserError

from . import imitation
from .conversations import read_samples, to_messages, write_dataset
from .environments import Game, open_environments
from .episodes import good_episodes
from .imitation import MODEL, Run
from .playing import Play, play_games, read_games
from .reading import read_json_lines
from .reflection import reflections
from .rejection import mixed, own_wins
from .settings import Training
from .stages import Result, Stage
from .systems import System, system_named
from .vocabulary import FEEDBACK


if TYPE_CHECKING:
    from .plan import Plan


PAIRS = "pairs"
FEEDBACK_RULE = {
    "name": "feedback",
    "role": "user",
    "pattern": rf"(?s)\A{FEEDBACK.replace('|', '[|]')}.*",
    "type": "LANDMARK",
}


@dataclass(frozen=True)
class Variant:
    """One way to learn more.

    Attributes:
        name: In files.
        title: In tables.
        new: Which samples are new: ``gold``, ``wins``, ``reflections``; ``pairs``: those of `hsa-factory pairs`.
        old: What they are mixed with; None: nothing.
        feedback: The block ``feedback``; None: nothing is masked.
    """

    name: str
    title: str
    new: str
    old: str | None = "gold"
    feedback: Mapping[str, Any] | None = None


VARIANTS = (
    Variant("more_gold", "more imitation", "gold"),
    Variant("own_wins", "own wins + gold (rejection sampling)", "wins"),
    Variant("own_wins_only", "own wins only", "wins", None),
    Variant("unmasked", "reflections + gold, nothing masked", "reflections"),
    Variant("after", "reflections + gold, train: after", "reflections", "gold", {"train": "after"}),
    Variant("recovery", "reflections + gold, train: recovery", "reflections", "gold", {"train": "recovery"}),
    Variant("after_wins", "reflections + own wins, train: after", "reflections", "wins", {"train": "after"}),
    Variant("recovery_wins", "reflections + own wins, train: recovery", "reflections", "wins", {"train": "recovery"}),
    Variant("dpo", "pairs, stage: dpo", PAIRS, None),
)
"""Each goes on with the weights of stage 1, for as many tokens; CONTROL is what the others are compared with."""

CONTROL = "more_gold"


class Further:
    """Adds stages 2 and 3 of one seed to a plan.

    Args:
        plan: Whose stages 1 are there.
        seed: Of training.
    """

    def __init__(self, plan: "Plan", seed: int) -> None:
        self.plan, self.seed, self.settings = plan, seed, plan.settings
        self.games = {"environment": plan.environment, "options": dict(plan.settings.options)}
        self.stages: list[Stage] = []
        for name in self.settings.bases:
            self._add(system_named(name))

    def _stage(
        self, kind: str, system: System, work: Any, *needs: Stage, goes_on: bool = False, **settings: Any
    ) -> Stage:
        described = {
            **self.games,
            "system": self.plan.described(system),
            "limit": self.settings.step_limit,
            **settings,
        }
        stage = Stage(f"{kind}/{system.name}/{self.seed}", work, described, needs, goes_on)
        self.stages.append(stage)
        return stage

    def _add(self, system: System) -> None:
        base, count = self.plan.trained(system, self.seed), self.settings.own_games

        def play(folder: Path, needs: Mapping[str, Path]) -> Result:
            how = Play(self.plan.environment, self.settings.step_limit, temperature=1.0, seed=self.seed)
            model = needs[base.name] / MODEL
            return play_games(folder, model, system, self.config(system), how, self._own_games())

        own = self._stage("own", system, play, base, games=count, first=self.settings.gold_games, temperature=1.0)
        data = self._stage("own_data", system, lambda f, needs: self._make_data(f, needs[own.name]), own)
        self._play_stages(system, base, "before", kinds=("told",))  # alone it has played in stage 1
        for variant in VARIANTS:
            self._add_variant(system, base, data, variant)

    def _add_variant(self, system: System, base: Stage, data: Stage, variant: Variant) -> None:
        training = self.settings.preference if variant.new == PAIRS else self.settings.further

        def work(folder: Path, needs: Mapping[str, Path]) -> Result:
            start = needs[base.name] / MODEL
            return self._train(system, variant, training, folder, start, needs[data.name], needs[self.plan.gold.name])

        kept = {key: value for key, value in asdict(variant).items() if key != "title"}
        name = f"further_{variant.name}"
        needs, how = (base, data, self.plan.gold), {"variant": kept, "training": asdict(training)}
        trained = self._stage(name, system, work, *needs, goes_on=True, **how)
        self._play_stages(system, trained, variant.name)

    def _play_stages(
        self, system: System, trained: Stage, name: str, kinds: Collection[str] = ("alone", "told")
    ) -> None:
        for kind in kinds:
            messages = self.settings.feedback_messages if kind == "told" else 0

            def work(folder: Path, needs: Mapping[str, Path], messages: int = messages) -> Result:
                how = Play(self.plan.environment, self.settings.step_limit, feedback=messages)
                games = self.plan.games("test", self.settings.test_games)
                return play_games(folder, needs[trained.name] / MODEL, system, self.config(system), how, games)

            self._stage(f"{kind}_{name}", system, work, trained, games=self.settings.test_games, feedback=messages)

    def _own_games(self) -> list[Game]:
        return self.plan.games("train", self.settings.own_games, self.settings.gold_games)

    def _make_data(self, folder: Path, own: Path) -> Result:
        """Write the samples of own play, and the pairs of reflections."""
        (environment,) = open_environments(self.plan.environment)
        games, played, limit = self._own_games(), read_games(own), self.settings.step_limit
        wins = own_wins(environment, games, played, limit)
        told, fatal = reflections(environment, games, played, limit)
        gold = [to_messages(episode) for episode in good_episodes(environment, games, self.settings.teacher, limit)]
        for name, samples in (("wins", wins), ("reflections", told), ("gold", gold)):
            write_dataset(folder, name, samples)
        files = ["--out", str(folder / f"{PAIRS}.jsonl"), "--dataset", "reflections", "--register"]
        if told and hsa_factory(["pairs", str(folder / "dataset_info.json"), *files]) != 0:
            raise UserError("hsa-factory pairs ended with an error; see the log.", exit_code=1)
        return {"games": len(games), "wins": len(wins), "reflections": len(told), "fatal": fatal, "gold": len(gold)}

    def _train(
        self,
        system: System,
        variant: Variant,
        training: Training,
        folder: Path,
        start: Path,
        data: Path,
        gold: Path,
    ) -> Result:
        hsa = self.hsa_block(system)
        if variant.new == PAIRS:
            if not (data / f"{PAIRS}.jsonl").is_file():
                raise ValueError("There are no pairs: no mistake of the system's own became a reflection.")
            training = matched(training, self.settings.further, pair_tokens(data, start))
            more = {"stage": "dpo", "neat_packing": False, "pref_beta": 0.1, "cutoff_len": 2048}
            return imitation.train(folder, Run(start, data, PAIRS, training, self.seed, hsa, None, more))
        new, dataset_dir = read_samples(data, variant.new), folder / "data"
        old = read_samples(gold if variant.old == "gold" else data, variant.old) if variant.old else []
        write_dataset(dataset_dir, variant.name, mixed(new, old))
        run = Run(start, dataset_dir, variant.name, training, self.seed, hsa, variant.feedback)
        return {**imitation.train(folder, run), "new": len(new)}

    def hsa_block(self, system: System) -> dict[str, Any]:
        """Return a system's block ``hsa``, with a rule for feedback: it is LANDMARK."""
        block = self.plan.hsa_block(system)
        return {**block, "rules": [FEEDBACK_RULE, *block["rules"]]} if "rules" in block else block

    def config(self, system: System) -> HSAConfig:
        """Return a system's HSA."""
        return HSAConfig(**self.hsa_block(system))


def pair_tokens(folder: Path, model: Path) -> float:
    """Return how many tokens a pair has in the mean: what leads to both answers stands in it twice."""
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    pairs = read_json_lines(folder / f"{PAIRS}.jsonl")
    lengths = [
        2 * sum(map(len, tokenizer([message["content"] for message in pair["messages"]])["input_ids"]))
        + sum(map(len, tokenizer([pair[answer]["content"] for answer in ("chosen", "rejected")])["input_ids"]))
        for pair in pairs
    ]
    return sum(lengths) / len(lengths)


def matched(training: Training, other: Training, row_tokens: float) -> Training:
    """Return a training whose phases of 0 steps have as many as bring the tokens of another's same phase, packed full.

    Args:
        training: Whose rows have `row_tokens` in the mean.
        other: Whose rows are packed.
        row_tokens: Of `training`.
    """
    rows = other.rows * other.row_tokens / (training.rows * row_tokens)
    phases = zip(training.phases, other.phases, strict=True)
    return replace(
        training,
        phases=tuple(one if one.steps else replace(one, steps=math.ceil(two.steps * rows)) for one, two in phases),
    )
