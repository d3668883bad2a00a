"""Checkpoints for vLLM: `hsa-factory export CHECKPOINT --export_for vllm`, and what it refuses."""

import json
import re

import pytest

from hsa_factory import HSAConfig, cli
from hsa_factory.serving_checkpoint import serving_architecture
from hsa_factory.user_errors import UserError


@pytest.fixture
def checkpoint(tmp_path):
    """The files of a model with HSA, without weights worth the name."""
    place = tmp_path / "checkpoint"
    place.mkdir()
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hsa": "trained with HSA"}
    (place / "config.json").write_text(json.dumps(config), "utf-8")
    for name in ("model.safetensors", "tokenizer.json", "optimizer.pt", "trainer_state.json", "rng_state_0.pth"):
        (place / name).write_text(name, "utf-8")
    (place / "checkpoint-2").mkdir()
    HSAConfig(noise_window=7).save_pretrained(place)
    return place


def export(*arguments):
    return cli.main(["export", *map(str, arguments)])


def test_a_copy_with_another_architecture(checkpoint, tmp_path, capsys):
    new = tmp_path / "deep" / "served"
    assert export(checkpoint, "--export_for", "vllm", "--export_dir", new) == 0
    assert "HSAQwen3ForCausalLM" in capsys.readouterr().out
    assert sorted(path.name for path in new.iterdir()) == [
        "config.json",
        "hsa_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    before, after = (json.loads((place / "config.json").read_text("utf-8")) for place in (checkpoint, new))
    assert before["architectures"] == ["Qwen3ForCausalLM"]
    assert after == {**before, "architectures": ["HSAQwen3ForCausalLM"]}
    assert HSAConfig.from_pretrained(new) == HSAConfig(noise_window=7)


def test_a_copy_of_a_copy_is_the_same(checkpoint, tmp_path):
    for source, target in ((checkpoint, "one"), (tmp_path / "one", "two")):
        assert export(source, "--export_for=vllm", f"--export_dir={tmp_path / target}") == 0
    texts = [(tmp_path / name / "config.json").read_text("utf-8") for name in ("one", "two")]
    assert texts[0] == texts[1] and serving_architecture(tmp_path / "two") == "HSAQwen3ForCausalLM"


def no_rules(place):
    (place / "hsa_config.json").unlink()


def an_adapter(place):
    (place / "config.json").rename(place / "adapter_config.json")


def another_model(place):
    (place / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}', "utf-8")


def broken(place):
    (place / "config.json").write_text("{", "utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_rules, "has no hsa_config.json"),
        (an_adapter, "is an adapter.*Merge it"),
        (another_model, "not for GPT2LMHeadModel"),
        (broken, "config.json: is not valid JSON"),
    ],
)
def test_what_cannot_be_served(checkpoint, change, message):
    change(checkpoint)
    with pytest.raises(UserError, match=message):
        serving_architecture(checkpoint)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{checkpoint}", "--export_for", "vlm", "--export_dir", "x"], "'vlm' is not allowed.*Did you mean 'vllm'"),
        (["{checkpoint}", "--export_for", "vllm", "--export_dir", "{checkpoint}"], "is the checkpoint itself"),
        (["/no/where", "--export_for", "vllm", "--export_dir", "x"], "needs the directory of a model first"),
    ],
)
def test_options_that_are_wrong(checkpoint, capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("HSA_FACTORY_DEBUG", raising=False)
    assert export(*(word.format(checkpoint=checkpoint) for word in arguments)) == 2
    assert re.search(message, capsys.readouterr().err)


def test_help(capsys):
    assert export("--help") == 0 and "export_for: vllm" in capsys.readouterr().out
