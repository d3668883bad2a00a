"""Which stages there are, in which order: everything of one seed before the next."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from hsa_factory import HSAConfig

from . import imitation, measures, playing
from .conversations import Message, read_samples, to_messages, write_dataset
from .environments import Game, games_of, open_environments
from .episodes import good_episodes
from .further import Further
from .imitation import MODEL, Run
from .model import save_model, shape
from .reading import read_json
from .settings import Settings
from .stages import DONE, Result, Stage
from .systems import System, cut_samples, system_named, with_random_types
from .vocabulary import save_tokenizer, tokenizer_of


GOLD = "gold"
MEASURED = 300  # episodes whose visible keys are counted
VERB_EPISODES = 200


class Plan:
    """The stages of some settings.

    Args:
        settings: What is run.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.environment = settings.environment
        kind: dict[str, Any] = {"words": True} if settings.words else {}
        self.vocabulary = self._stage("vocabulary", self._make_vocabulary, games=settings.survey_games, **kind)
        played_well: dict[str, Any] = {"teacher": settings.teacher, "limit": settings.step_limit}
        self.gold = self._stage("gold", self._make_gold, self.vocabulary, games=settings.gold_games, **played_well)
        self.dev_gold = self._stage(
            "gold_dev", self._make_dev_gold, self.vocabulary, games=VERB_EPISODES, **played_well
        )
        self.shown = self._stage("shown", self._make_shown, self.vocabulary, self.gold)
        self.stages: list[Stage] = [self.vocabulary, self.gold, self.dev_gold, self.shown]
        self._trained: dict[tuple[str, int], Stage] = {}
        for seed in settings.seeds:
            self._add_seed(seed)

    def named(self, name: str) -> Stage:
        """Return a stage by its name."""
        return next(stage for stage in self.stages if stage.name == name)

    def trained(self, system: System, seed: int) -> Stage:
        """Return the stage that trains a system."""
        return self._trained[system.weights_of or system.name, seed]

    def _stage(self, name: str, work: Any, *needs: Stage, goes_on: bool = False, **settings: Any) -> Stage:
        games = {"environment": self.environment, "options": dict(self.settings.options)}
        return Stage(name, work, {**games, **settings}, needs, goes_on)

    # -- what all seeds share --------------------------------------------------------------------------------------

    def games(self, fold: str, count: int, first: int = 0) -> list[Game]:
        """Name games of a fold, with the options of the settings."""
        return games_of(self.environment, fold, count, first, **self.settings.options)

    def _make_vocabulary(self, folder: Path, needs: Mapping[str, Path]) -> Result:
        (environment,) = open_environments(self.environment)
        games = self.games("train", self.settings.survey_games)
        tokenizer = tokenizer_of(environment, games, words=self.settings.words)
        save_tokenizer(tokenizer, folder / "tokenizer")
        return {"tokens": len(tokenizer)}

    def _make_gold(self, folder: Path, needs: Mapping[str, Path]) -> Result:
        return self._write_gold(folder, self.games("train", self.settings.gold_games))

    def _make_dev_gold(self, folder: Path, needs: Mapping[str, Path]) -> Result:
        return self._write_gold(folder, self.games("dev", VERB_EPISODES, first=self.settings.dev_games))

    def _write_gold(self, folder: Path, games: Sequence[Game]) -> Result:
        (environment,) = open_environments(self.environment)
        episodes = list(good_episodes(environment, games, self.settings.teacher, self.settings.step_limit))
        write_dataset(folder, GOLD, [to_messages(episode) for episode in episodes])
        names = [asdict(episode.game) for episode in episodes]
        (folder / "games.json").write_text(json.dumps(names), encoding="utf-8")
        turns = sum(len(episode.turns) for episode in episodes)
        return {"games": len(games), "episodes": len(episodes), "turns": turns / max(len(episodes), 1)}

    def _make_shown(self, folder: Path, needs: Mapping[str, Path]) -> Result:
        """Count what each system sees, and the shares of the types."""
        samples = read_samples(needs["gold"], GOLD)[:MEASURED]
        found = {}
        for name in self.settings.systems:
            system = system_named(name)
            if system.window_of is None and system.typing != "random" and system.keep_last is None:
                found[name] = measures.visible_keys(needs["vocabulary"] / "tokenizer", samples, self.config(system))
        return found

    # -- one seed --------------------------------------------------------------------------------------------------

    def _add_seed(self, seed: int) -> None:

        def make_model(folder: Path, needs: Mapping[str, Path]) -> Result:
            tokenizer = AutoTokenizer.from_pretrained(str(needs["vocabulary"] / "tokenizer"))
            return {"parameters": save_model(folder / MODEL, tokenizer, seed, self.settings.positions)}

        init = self._stage(
            f"init/{seed}", make_model, self.vocabulary, seed=seed, shape=shape(self.settings.positions)
        )
        self.stages.append(init)
        for name in self.settings.systems:
            self._add_system(system_named(name), seed, init)
        if self.settings.own_games:
            self.stages += Further(self, seed).stages

    def _add_system(self, system: System, seed: int, init: Stage) -> None:
        settings, described = self.settings, self.described(system)
        if system.weights_of is None:
            train = self._stage(
                f"train/{system.name}/{seed}",
                lambda folder, needs: self._train(system, seed, folder, needs),
                init,
                self.gold,
                self.shown,
                goes_on=True,
                system=described,
                training=asdict(settings.training),
                seed=seed,
            )
            self._trained[system.name, seed] = train
            self.stages.append(train)
        train = self.trained(system, seed)
        if settings.dev_games:
            self.stages.append(self._play_stage(system, seed, train, "dev", settings.dev_games))
        self.stages.append(self._verb_stage(system, seed, train))
        if settings.curve_games and system.name in settings.curve_systems:
            self.stages.append(self._curve_stage(system, seed, train))
        self.stages.append(self._play_stage(system, seed, train, "test", settings.test_games))

    def _play_stage(self, system: System, seed: int, train: Stage, fold: str, games: int) -> Stage:
        def work(folder: Path, needs: Mapping[str, Path]) -> Result:
            return self._play(system, folder, needs[train.name] / MODEL, self.games(fold, games), needs["shown"])

        settings: dict[str, Any] = {
            "system": self.described(system),
            "fold": fold,
            "games": games,
            "limit": self.settings.step_limit,
        }
        return self._stage(f"play/{fold}/{system.name}/{seed}", work, train, self.shown, **settings)

    def _curve_stage(self, system: System, seed: int, train: Stage) -> Stage:
        """Play the dev fold with each checkpoint."""

        def work(folder: Path, needs: Mapping[str, Path]) -> Result:
            made = _result(needs[train.name])["checkpoints"]
            games, points = self.games("dev", self.settings.curve_games), []
            for point in made:
                place = folder / point["folder"].replace("/", ".")
                result = self._play(system, place, needs[train.name] / point["folder"], games, needs["shown"])
                points.append({**point, **result})
            return {"points": points}

        settings: dict[str, Any] = {
            "system": self.described(system),
            "games": self.settings.curve_games,
            "limit": self.settings.step_limit,
        }
        return self._stage(f"curve/{system.name}/{seed}", work, train, self.shown, **settings)

    def _verb_stage(self, system: System, seed: int, train: Stage) -> Stage:
        def work(folder: Path, needs: Mapping[str, Path]) -> Result:
            samples = self._samples(system, needs["gold_dev"], needs["shown"])
            config = self.config(system, needs["shown"])
            return {"verbs": measures.accuracy_by_verb(needs[train.name] / MODEL, samples, config)}

        return self._stage(
            f"verbs/{system.name}/{seed}",
            work,
            train,
            self.dev_gold,
            self.shown,
            system=self.described(system),
            measure=measures.RETURN,
        )

    def _train(self, system: System, seed: int, folder: Path, needs: Mapping[str, Path]) -> Result:
        dataset_dir = needs["gold"]
        if system.typing == "random" or system.keep_last is not None:
            dataset_dir = folder / "data"
            write_dataset(dataset_dir, GOLD, self._samples(system, needs["gold"], needs["shown"]))
        hsa = self.hsa_block(system, needs["shown"])
        start = needs[f"init/{seed}"] / MODEL
        run = Run(start, dataset_dir, GOLD, self.settings.training, seed, hsa)
        if system.typing == "random":
            _add_type_tag(dataset_dir)
        return imitation.train(folder, run)

    def _samples(self, system: System, gold: Path, shown: Path) -> list[list[Message]]:
        """Return gold episodes as a system is trained on them."""
        rows = read_samples(gold, GOLD)
        if system.keep_last is not None:
            kept = system.keep_last
            return [part for number, row in enumerate(rows) for part in cut_samples(row, kept, number % kept)]
        if system.typing == "random":
            games = [_game(values) for values in read_json(gold / "games.json")]
            shares = self.shares(system, shown) or {}
            return [with_random_types(row, game, shares) for row, game in zip(rows, games, strict=True)]
        return rows

    def _play(self, system: System, folder: Path, model: Path, games: list[Game], shown: Path, **how: Any) -> Result:
        play = playing.Play(self.environment, self.settings.step_limit, **how)
        config = self.config(system, shown)
        return playing.play_games(folder, model, system, config, play, games, self.shares(system, shown))

    # -- a system's HSA --------------------------------------------------------------------------------------------

    def hsa_block(self, system: System, shown: Path | None = None) -> dict[str, Any]:
        """Return the block ``hsa`` of a system.

        Args:
            system: Which.
            shown: Folder of the stage ``shown``; None: the system needs nothing of it.
        """
        window = None
        if system.window_of is not None and shown is not None:
            window = round(_result(shown)[system.window_of]["mean"])
        block, rules = system.options(window), self._rules(system)
        return block if rules is None else {**block, "rules": rules}

    def config(self, system: System, shown: Path | None = None) -> HSAConfig:
        """Return a system's HSA."""
        return HSAConfig(**self.hsa_block(system, shown))

    def described(self, system: System) -> dict[str, Any]:
        """Return what of a system decides results, its rules included: not what it is called."""
        values = {name: value for name, value in asdict(system).items() if name not in ("title", "note")}
        return {**values, "rules": self._rules(system)}

    def _rules(self, system: System) -> list[dict[str, Any]] | None:
        (environment,) = open_environments(self.environment)
        return system.rules(environment)

    def shares(self, system: System, shown: Path) -> dict[str, float] | None:
        """Return how often each type is drawn for a system of random types; None: it is none."""
        return _result(shown)["hsa_002_64"]["shares"] if system.typing == "random" else None


def _result(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = read_json(folder / DONE)["result"]
    return result


def _game(values: Mapping[str, Any]) -> Game:
    return Game(**{**values, "options": tuple((name, value) for name, value in values["options"])})


def _add_type_tag(dataset_dir: Path) -> None:
    """Let a data set's messages bring their types."""
    path = dataset_dir / "dataset_info.json"
    entries = read_json(path)
    for entry in entries.values():
        entry["tags"]["semantic_tag"] = "semantic_type"
    path.write_text(json.dumps(entries), encoding="utf-8")
