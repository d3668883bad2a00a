"""``python -m experiments.pictures``: BabyAI seen in pictures alone, by a tiny Qwen2.5-VL from nothing.

It shows the way: pictures typed NOISE by rules, training on LLaMA-Factory, play with `AgentBatch`, pictures leaving the
cache. In minutes a model begins to look; one seed and few games are no evidence for or against HSA.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.models import AgentBatch
from hsa_factory.user_errors import UserError

from . import imitation
from .command_line import ending, folder, number_up_to, only_run_in
from .conversations import typing_rules, write_episodes
from .environments import Environment, Game, games_of, open_environments
from .environments.baby_ai import ACTIONS, GAMES_A_FOLD, check_levels
from .episodes import good_episodes
from .imitation import MODEL, Run
from .reading import read_json
from .settings import Phase, Training
from .stages import Result, Stage, run_stage
from .statistics import share
from .table import Table


ENVIRONMENT, SEEN, MODEL_TYPE = "babyai", "seen", "qwen2_5_vl"
LEVELS = ("GoToLocal", "PickupLoc")
ROWS, LONGEST_ACTION = 16, 8
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
        return play_games(needs[trained.name] / MODEL, HSAConfig(**hsa_block(name)), games, limit)

    return Stage(f"pictures.play/{name}", work, {"games": len(games), "limit": limit, "keys": "held"}, (trained,))


def play_games(folder: Path, config: HSAConfig, games: Sequence[Game], limit: int) -> Result:
    """Let a trained model look and act, many games side by side; each answer is one of BabyAI's actions.

    Args:
        folder: Of the model and its processor.
        config: Its HSA, with its rules.
        games: Which, one at least.
        limit: Actions a game.
    """
    model: Any = AutoModelForImageTextToText.from_pretrained(str(folder), dtype=torch.float32).eval()
    environments = open_environments(ENVIRONMENT, min(ROWS, len(games)))
    enable_hsa(model, config)
    agents = AgentBatch(model, AutoProcessor.from_pretrained(str(folder)), len(environments), LONGEST_ACTION)
    waiting, won, tokens = list(reversed(games)), 0, 0

    def begin(row: int) -> None:
        if not waiting:
            agents.finish(row)
            return
        observation = environments[row].reset(waiting.pop(), limit)
        agents.start(row)
        task = {"role": "system", "content": environments[row].task}
        agents.append_messages({row: [task, seen(environments[row], observation)]})

    for row in range(len(environments)):
        begin(row)
    while agents.live:
        actions = agents.act(dict.fromkeys(agents.live, list(ACTIONS)))
        for row in agents.live:
            step = environments[row].step(str(actions[row]))
            if step.done:
                won += step.won
                tokens += agents.report().rows[row].tokens
                begin(row)
            else:
                agents.append_messages({row: seen(environments[row], step.observation)})
    report = agents.report()
    return {
        "games": len(games),
        "won": won,
        "tokens": tokens / len(games),
        "mean_held": report.mean_held,
        "peak_held": report.peak_held,
    }


def seen(environment: Environment, observation: str) -> dict[str, Any]:
    """Return what the agent sees as a chat message, as `to_messages` orders it: the picture, then what is told."""
    parts = [{"type": "image", "image": environment.picture()}]
    parts += [{"type": "text", "text": observation}] if observation else []
    return {"role": "user", "content": parts}


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
        for number, stage in enumerate(made):
            print(f"{time.strftime('%H:%M:%S')} [{number}/{len(made)}] {stage.name} …", flush=True)
            run_stage(stage, given.out)
    rows = [
        [
            stage.name.partition("/")[2],
            found["games"],
            str(share(found["won"], found["games"])),
            round(found["tokens"]),
            f"{found['mean_held']:.0f} ({found['peak_held']})",
        ]
        for stage in made
        if stage.name.startswith("pictures.play") and (found := stage.result(given.out)) is not None
    ]
    columns = ("system", "games", "won", "tokens a game", "keys held (peak)")
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
