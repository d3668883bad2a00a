"""Pictures end to end: the bot's games, training on LLaMA-Factory, play with `AgentBatch`."""

import json

import pytest


pytest.importorskip("minigrid", reason="pip install 'hsa-factory[experiment]'")
pytest.importorskip("torchvision")

from experiments import pictures
from experiments.environments import games_of, open_environments
from experiments.environments.baby_ai import ACTIONS

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.models import AgentBatch
from hsa_factory.semantics import SemanticType


NOISE = "pictures NOISE"
GAMES = {"levels": ("GoToLocal",), "pictures": True, "words": False}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    pytest.importorskip("llamafactory")
    out = tmp_path_factory.mktemp("pictures")
    options = ["--levels", "GoToLocal", "--gold=3", "--steps=1", "--games=2", "--limit=5"]
    assert pictures.main(["--out", str(out), *options]) == 0
    made = pictures.stages(["GoToLocal"], 3, 1, 2, 5)
    assert all(stage.is_done(out) for stage in made)
    return out, {stage.name: stage for stage in made}


def test_both_systems_are_trained_and_play(finished, capsys):
    out, made = finished
    results = {name: made[f"pictures.play/{name}"].result(out) for name in pictures.SYSTEMS}
    for result in results.values():
        assert result["games"] == 2 and result["tokens"] > 5 * 16
    assert results[NOISE]["peak_held"] < results["pictures GLOBAL"]["peak_held"]
    shares = {name: made[f"pictures.train/{name}"].result(out)["shares"] for name in pictures.SYSTEMS}
    assert shares["pictures GLOBAL"]["GLOBAL"] == 1.0 and shares[NOISE]["NOISE"] > 0.5


def test_what_is_done_is_not_done_again_and_shown_as_a_table(finished, capsys):
    out, made = finished
    options = ["--levels", "GoToLocal", "--gold=3", "--steps=1", "--games=2", "--limit=5"]
    assert pictures.main(["--out", str(out), *options]) == 0
    said = capsys.readouterr().out
    assert f"| {NOISE} | 2 |" in said and "Running tokenizer" not in said


def test_play_reads_what_llamafactory_trains_on(finished, tmp_path):
    """The bot's game is forced upon a player: ids and types as `inspect` shows them of training."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from hsa_factory.cli import main

    out, made = finished
    train, shown = made[f"pictures.train/{NOISE}"].folder(out), tmp_path / "shown.json"
    options = [f"output_dir={tmp_path / 'none'}", "--format", "json", "--samples", "0", "--output", str(shown)]
    assert main(["inspect", str(train / "train_0.yaml"), *options]) == 0
    sample = json.loads(shown.read_text("utf-8").splitlines()[0])

    rows = json.loads((made["pictures.gold"].folder(out) / "seen.json").read_text("utf-8"))
    (environment,) = open_environments("babyai")
    observation = environment.reset(games_of("babyai", "train", 1, **GAMES)[0], 5)
    config = HSAConfig(**pictures.hsa_block(NOISE))
    model = AutoModelForImageTextToText.from_pretrained(train / "model").eval()
    enable_hsa(model, config)
    agents = AgentBatch(model, AutoProcessor.from_pretrained(train / "model"), rows=1, max_new_tokens=8)
    news = [{"role": "system", "content": environment.task}, pictures.seen(environment, observation)]
    for message in rows[0]["messages"]:
        if message["role"] == "assistant":
            agents.append_messages({0: news})
            agents.act({0: [message["content"]]})
            news = [pictures.seen(environment, environment.step(message["content"]).observation)]
    history = agents.history(0)
    length = min(len(history["input_ids"]), len(sample["input_ids"]))
    assert abs(len(sample["input_ids"]) - len(history["input_ids"])) <= 1, "the line break behind the last action"
    assert history["input_ids"][:length] == sample["input_ids"][:length]
    kinds = [SemanticType.parse(kind) for kind in sample["semantic_ids"]]
    assert history["semantic_ids"][:length] == kinds[:length] and len(set(kinds)) > 1


def test_games_take_turns_in_few_rows(monkeypatch, tmp_path):
    monkeypatch.setattr(pictures, "ROWS", 2)
    tiny.save_tiny(pictures.MODEL_TYPE, tmp_path, ["go to the red ball", *ACTIONS])
    games = games_of("babyai", "dev", 5, **GAMES)
    result = pictures.play_games(tmp_path, HSAConfig(**pictures.hsa_block(NOISE)), games, 3)
    assert result["games"] == 5 and 0 <= result["won"] <= 5 and result["tokens"] > 3 * 16
