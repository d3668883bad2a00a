"""``python -m experiments.pictures``: BabyAI seen in pictures alone, by a tiny Qwen2.5-VL from nothing.

It shows the way: pictures typed NOISE by rules, training on LLaMA-Factory, play with pictures leaving the cache. Two cores
teach a model to look in hours, not minutes, so what it wins here is no evidence for or against HSA.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.models import HSACache
from hsa_factory.training import encode_conversation
from hsa_factory.user_errors import UserError

from . import imitation
from .command_line import ending, folder, number_up_to, only_run_in
from .conversations import typing_rules, write_episodes
from .environments import Game, games_of, open_environments
from .environments.baby_ai import ACTIONS, GAMES_A_FOLD, check_levels
from .episodes import good_episodes
from .imitation import MODEL, Run
from .reading import read_json
from .settings import Phase, Training
from .stages import Result, Stage, run_stage
from .table import Table


ENVIRONMENT, SEEN, MODEL_TYPE = "babyai", "seen", "qwen2_5_vl"
LEVELS = ("GoToLocal", "PickupLoc")
SYSTEMS: dict[str, dict[str, Any]] = {
    "pictures GLOBAL": {"landmark_decay": 0.0, "noise_decay": 0.0, "noise_window": None},
    "pictures NOISE": {"noise_decay": 0.02, "noise_window": 64},
}
"""Options of the block ``hsa``; the second has the environment's rules, too."""
UNPACKED = {
    "template": "qwen2_vl",
    "neat_packing": False,
    "freeze_vision_tower": False,  # it knows nothing yet
    "freeze_multi_modal_projector": False,
    "image_max_pixels": 224 * 224,
}


def hsa_block(name: str) -> dict[str, Any]:
    """Return the block ``hsa`` of one of `SYSTEMS`."""
    (environment,) = open_environments(ENVIRONMENT)
    rules = {} if name == "pictures GLOBAL" else {"rules": typing_rules(environment)}
    return {**SYSTEMS[name], **rules}


def stages(levels: Sequence[str], gold: int, steps: int, games: int, limit: int) -> list[Stage]:
    """Return what is done, in order.

    Args:
        levels: Of BabyAI, without ``BabyAI-`` and ``-v0``.
        gold: Games of the train fold that the bot plays.
        steps: Of training, 4 episodes each.
        games: Of the test fold that each system plays.
        limit: Actions a game.
    """
    options: dict[str, Any] = {"levels": list(levels), "pictures": True, "words": False}

    def make_gold(folder: Path, needs: Mapping[str, Path]) -> Result:
        (environment,) = open_environments(ENVIRONMENT)
        named = games_of(ENVIRONMENT, "train", gold, **options)
        episodes = list(good_episodes(environment, named, step_limit=limit))
        if not episodes:
            raise UserError(f"the bot wins none of {gold} games within {limit} actions: give more with --limit.")
        write_episodes(folder, SEEN, episodes)
        return {"episodes": len(episodes), "pictures": sum(len(episode.turns) for episode in episodes)}

    def make_model(folder: Path, needs: Mapping[str, Path]) -> Result:
        rows = read_json(needs["pictures.gold"] / f"{SEEN}.json")
        texts = [message["content"] for row in rows for message in row["messages"]]
        tiny.save_tiny(MODEL_TYPE, folder / MODEL, texts)
        return {}

    data = Stage("pictures.gold", make_gold, {"games": gold, "limit": limit, **options})
    model = Stage("pictures.model", make_model, {}, (data,))
    made = [data, model]
    for name in SYSTEMS:
        trained = _train_stage(name, steps, data, model)
        named = games_of(ENVIRONMENT, "test", games, **options)
        made += [trained, _play_stage(name, trained, named, limit)]
    return made


def _train_stage(name: str, steps: int, data: Stage, model: Stage) -> Stage:
    training = Training(phases=(Phase(steps, 3e-3),), rows=4, row_tokens=2048, saves=1)

    def work(folder: Path, needs: Mapping[str, Path]) -> Result:
        start = needs[model.name] / MODEL
        return imitation.train(
            folder, Run(start, needs[data.name], SEEN, training, 0, hsa_block(name), None, UNPACKED)
        )

    return Stage(f"pictures.train/{name}", work, {"steps": steps, "hsa": hsa_block(name)}, (data, model), goes_on=True)


def _play_stage(name: str, trained: Stage, games: list[Game], limit: int) -> Stage:
    def work(folder: Path, needs: Mapping[str, Path]) -> Result:
        player = Player(needs[trained.name] / MODEL, HSAConfig(**hsa_block(name)))
        (environment,) = open_environments(ENVIRONMENT)
        played = [player.play(environment, game, limit) for game in games]
        return {
            "games": len(played),
            "won": sum(won for won, *_ in played),
            "tokens": sum(seen for _, seen, _ in played) / len(played),
            "kept": sum(kept for *_, kept in played) / len(played),
        }

    return Stage(f"pictures.play/{name}", work, {"games": len(games), "limit": limit}, (trained,))


class Player:
    """A trained model that looks and acts, one game at a time.

    Args:
        folder: Of the model and its processor.
        config: Its HSA.
    """

    def __init__(self, folder: Path, config: HSAConfig) -> None:
        model = AutoModelForImageTextToText.from_pretrained(str(folder), dtype=torch.float32).eval()
        self.model: Any = enable_hsa(model, config)
        self.config = config
        self.processor = AutoProcessor.from_pretrained(str(folder))

    def play(self, environment: Any, game: Game, limit: int) -> tuple[bool, int, int]:
        """Play a game, and return whether it was won, its tokens, and those whose keys were kept at the end."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": ""}]
        observation = environment.reset(game, limit)
        messages[0]["content"] = environment.task
        step = None
        report: dict[str, int] = {}
        while step is None or not step.done:
            parts = [{"type": "image", "image": environment.picture()}]
            parts += [{"type": "text", "text": observation}] if observation else []
            messages.append({"role": "user", "content": parts})
            action, report = self.act(messages)
            messages.append({"role": "assistant", "content": action})
            step = environment.step(action)
            observation = step.observation
        return step.won, report["seen_tokens"], report["kept_tokens"]

    def act(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, int]]:
        """Return the action that the model writes next, and its cache's report."""
        prompt = encode_prompt(self.processor, messages, self.config)
        cache, tokenizer = HSACache(self.config, max_waiting=1), self.processor.tokenizer
        with torch.no_grad():
            output = self.model.generate(
                **prompt, past_key_values=cache, tokenizer=tokenizer, max_new_tokens=8, do_sample=False
            )
        written = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        return written.strip() or "nothing", cache.report()


def encode_prompt(processor: Any, messages: Sequence[Mapping[str, Any]], config: HSAConfig) -> dict[str, Any]:
    """Return a conversation up to where its next reply begins, (1, L) each, with its pictures: as it would be trained."""
    row = encode_conversation(processor, [*messages, {"role": "assistant", "content": next(iter(ACTIONS))}], config)
    labels = row.pop("labels")
    trained = [number for number, label in enumerate(labels) if label != -100]
    stop = next(number for number in reversed(trained) if labels[number - 1] == -100)
    row.pop("loss_weights", None)
    return {
        name: torch.tensor([values[:stop]]) if isinstance(values, list) else torch.as_tensor(values)
        for name, values in row.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is not done yet, and print what each system has won.

    Args:
        arguments: Of the command line; None: those of the process.

    Returns:
        0 if all is done, 1 if a training has failed, 2 if it could not begin or go on, 130 if it was stopped.
    """
    given = _parser().parse_args(arguments)
    return ending("experiments.pictures", lambda: _run(given))


def _run(given: argparse.Namespace) -> int:
    check_levels(given.levels)
    made = stages(given.levels, given.gold, given.steps, given.games, given.limit)
    with only_run_in(given.out):
        for stage in made:
            run_stage(stage, given.out)
    rows = [
        [stage.name.partition("/")[2], found["games"], found["won"], round(found["tokens"]), round(found["kept"])]
        for stage in made
        if stage.name.startswith("pictures.play") and (found := stage.result(given.out)) is not None
    ]
    columns = ("system", "games", "won", "tokens a game", "keys kept at its end")
    print(Table("pictures", "BabyAI in pictures", columns, rows).markdown())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.pictures",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=folder, default=Path("evidence-pictures"), help="folder of the results")
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), help="of BabyAI: KeyCorridorS6R3, BossLevel, …")
    games = number_up_to(GAMES_A_FOLD)
    parser.add_argument("--gold", type=games, default=400, help="games of the train fold that the bot plays")
    parser.add_argument("--steps", type=number_up_to(), default=200, help="of training, 4 episodes each")
    parser.add_argument("--games", type=games, default=40, help="games of the test fold that each system plays")
    parser.add_argument("--limit", type=number_up_to(), default=24, help="actions a game")
    return parser


if __name__ == "__main__":
    sys.exit(main())
