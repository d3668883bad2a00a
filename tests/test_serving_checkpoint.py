"""Checkpoints for vLLM: `hsa-factory export CHECKPOINT --export_for vllm`, and what it refuses."""

import json
import re
import sys

import pytest

from hsa_factory import HSAConfig, cli
from hsa_factory.serving_checkpoint import serving_architecture


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


def test_a_copy_needs_nothing_that_training_needs(checkpoint, tmp_path, monkeypatch):
    """It is made where vLLM is installed, too."""
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    for name in ("training_file", "commands.export", "commands.pass_on"):
        monkeypatch.delitem(sys.modules, f"hsa_factory.{name}", raising=False)
    assert export(checkpoint, "--export_for", "vllm", "--export_dir", tmp_path / "served") == 0


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


def test_a_directory_with_weights_of_another_model_is_refused(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HSA_FACTORY_DEBUG", raising=False)
    new = tmp_path / "served"
    new.mkdir()
    for name, code in (("notes.txt", 0), ("model.safetensors.index.json", 2)):
        (new / name).write_text("{}", "utf-8")
        assert export(checkpoint, "--export_for", "vllm", "--export_dir", new) == code
    assert "has model.safetensors.index.json, which" in capsys.readouterr().err


def test_further_chat_templates_come_along(checkpoint, tmp_path):
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "tool_use.jinja").write_text("x", "utf-8")
    export(checkpoint, "--export_for", "vllm", "--export_dir", tmp_path / "served")
    assert (tmp_path / "served" / "additional_chat_templates" / "tool_use.jinja").read_text("utf-8") == "x"


def no_rules(place):
    (place / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}', "utf-8")
    (place / "hsa_config.json").unlink()


def an_adapter(place):
    (place / "config.json").rename(place / "adapter_config.json")


def another_model(place):
    (place / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}', "utf-8")


def broken(place):
    (place / "config.json").write_text("{", "utf-8")


def nested(place):
    (place / "config.json").write_text("[" * 100_000, "utf-8")


def one_name(place):
    (place / "config.json").write_text('{"architectures": {"Qwen3ForCausalLM": 1}}', "utf-8")


def noted(place):
    """Its config.json says HSA, as `save_pretrained` notes it; the rules were not copied."""
    (place / "hsa_config.json").unlink()


def twice(place):
    (place / "hsa_config.json").write_text('{"noise_window": 3, "noise_window": 4}', "utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_rules, "has no hsa_config.json"),
        (an_adapter, "is an adapter.*Merge it"),
        (another_model, "not for GPT2LMHeadModel"),
        (broken, "config.json: is not valid JSON"),
        (nested, "config.json: is not valid JSON: maximum recursion"),
        (one_name, "architectures in its config.json must be a list of names"),
        (noted, "its config.json says that it was trained with HSA, but the rules are not there"),
        (twice, "hsa_config.json is not valid JSON: the key 'noise_window' stands twice"),
    ],
)
def test_what_cannot_be_served(checkpoint, change, message):
    change(checkpoint)
    with pytest.raises(ValueError, match=message):
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
