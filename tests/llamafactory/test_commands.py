"""`hsa-factory chat` in a terminal, and `export` with what comes after it, as a user runs them."""

import json
import os
import re
import select
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from hsa_factory import HSAConfig, enable_hsa
from hsa_factory.llamafactory import integrate
from hsa_factory.models.enable import get_state


HSA = HSAConfig(noise_window=3, noise_decay=0.4, default_type="NOISE", generated_type="LANDMARK")
OPTIONS = {"template": "qwen3_nothink", "infer_dtype": "float32", "do_sample": False, "max_new_tokens": 12}
QUESTIONS = ["open the fridge", "take the red apple", "where is the table"]
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TERM": "dumb"}


@pytest.fixture(scope="module")
def checkpoint(lf, tmp_path_factory):
    """A model with HSA, saved as training saves it."""
    return lf.save_checkpoint(tmp_path_factory.mktemp("checkpoint"), HSA)


def answers(checkpoint, hsa):
    """Return what a model answers to the questions, one after the other."""
    from llamafactory.chat import ChatModel

    messages, replies = [], []
    with integrate(hsa) if hsa else nullcontext():
        model = ChatModel({"model_name_or_path": str(checkpoint), **OPTIONS})
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            replies.append(model.chat(messages)[0].response_text)
            messages.append({"role": "assistant", "content": replies[-1]})
    return replies


def squeezed(text):
    """Return a text without what a terminal adds or changes."""
    return re.sub(r"\s+", "", text.replace("\ufffd", ""))


class Terminal:
    """A command in a pseudo terminal."""

    def __init__(self, *arguments):
        self.master, slave = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hsa_factory.cli", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
        )
        os.close(slave)

    def read_until(self, mark, timeout=600):
        """Return what is shown up to a mark."""
        shown, deadline = b"", time.monotonic() + timeout
        while mark not in shown.decode("utf-8", "replace"):
            ready, _, _ = select.select([self.master], [], [], 1)
            assert time.monotonic() < deadline and (ready or self.process.poll() is None), shown
            shown += os.read(self.master, 4096) if ready else b""
        return shown.decode("utf-8", "replace")

    def write(self, line):
        os.write(self.master, line.encode() + b"\n")

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.mark.long
@pytest.mark.slow
def test_chat_in_a_terminal(checkpoint, tmp_path):
    """Several turns, `clear`, and `exit`; the answers are those of the model with HSA, not those of the plain one."""
    expected = answers(checkpoint, "saved")
    assert squeezed("".join(expected)) != squeezed("".join(answers(checkpoint, None)))
    path = tmp_path / "chat.json"
    path.write_text(json.dumps({"model_name_or_path": str(checkpoint), **OPTIONS}), "utf-8")
    terminal = Terminal("chat", str(path))
    try:
        terminal.read_until("User: ")
        for question, reply in zip(QUESTIONS, expected):
            terminal.write(question)
            shown = terminal.read_until("User: ").split("Assistant: ", 1)[1].rsplit("User: ", 1)[0]
            assert squeezed(shown) == squeezed(reply)
        terminal.write("clear")
        assert "History has been removed" in terminal.read_until("User: ")
        terminal.write(QUESTIONS[0])
        shown = terminal.read_until("User: ").split("Assistant: ", 1)[1].rsplit("User: ", 1)[0]
        assert squeezed(shown) == squeezed(expected[0])
        terminal.write("exit")
        assert terminal.process.wait(timeout=120) == 0
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        ("chat", {"model_name_or_path": "/no/where"}, "there is no such directory. Repo id must be.* '/no/where'"),
        (
            "export",
            {"model_name_or_path": "/no/where", "export_dir": "x"},
            "there is no such directory. Repo id must be.* '/no/where'",
        ),
        ("chat", {"tempalte": "qwen3"}, r"Some keys are not used by the HfArgumentParser: \['tempalte'\]"),
        ("export", {"expot_dir": "x"}, r"Some keys are not used by the HfArgumentParser: \['expot_dir'\]"),
        ("chat", {"hsa": {"noise_windwo": 3}}, "unknown key 'noise_windwo'. Did you mean 'noise_window'?"),
        ("chat", {"hsa": {"layers": [7]}}, "was made with another HSA configuration than the one asked"),
        ("chat", {"infer_backend": "vllm"}, "`infer_backend: vllm` cannot run a model with HSA"),
        ("chat", {"adapter_name_or_path": "/no/adapter"}, "Can't find 'adapter_config.json' at '/no/adapter'"),
        (
            "export",
            {"adapter_name_or_path": "/no/adapter", "export_dir": "x"},
            "Can't find 'adapter_config.json' at '/no/adapter'",
        ),
        ("export", {}, "Please specify `export_dir`"),
    ],
)
def test_what_users_get_wrong_is_one_message(lf, checkpoint, tmp_path, capsys, monkeypatch, command, changes, message):
    from hsa_factory import cli

    monkeypatch.delenv("HSA_FACTORY_DEBUG", raising=False)
    path = tmp_path / "file.json"
    options = {"model_name_or_path": str(checkpoint), "template": "qwen3_nothink", **changes}
    path.write_text(json.dumps(options), "utf-8")
    assert cli.main([command, str(path)]) == 2
    said = capsys.readouterr().err
    assert re.search(f"hsa-factory: .*{message}", said, re.DOTALL) and "Traceback" not in said


def test_what_is_wrong_without_a_file_is_one_message(capsys, monkeypatch):
    from hsa_factory import cli

    monkeypatch.delenv("HSA_FACTORY_DEBUG", raising=False)
    assert cli.main(["export", "--model_name_or_path", "/no/where", "--export_dir", "x"]) == 2
    said = capsys.readouterr().err
    assert "hsa-factory: " in said and "Traceback" not in said


def test_a_message_is_all_that_a_process_says(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text("model_name_or_path: [1,\n", "utf-8")
    command = [sys.executable, "-m", "hsa_factory.cli", "chat", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT})
    assert done.returncode == 2 and "hsa-factory: " in done.stderr and "Traceback" not in done.stderr


def test_an_exported_model_needs_nothing_else(lf, tmp_path, checkpoint):
    """Train an adapter with HSA, merge it with the command, load it as any checkpoint: its rules are found."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hsa_factory import cli

    data = lf.write_data(tmp_path, data=[lf.dialogue(["GLOBAL", "NOISE", "LANDMARK", "NOISE"])])
    lora = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "all", "template": "qwen3_nothink"}
    base = lf.model_dir("qwen3")
    lf.train(lf.args(data, "data", base, **lora), HSA)
    path = tmp_path / "export.json"
    merged = tmp_path / "merged"
    arguments = {"model_name_or_path": str(base), "adapter_name_or_path": str(tmp_path / "out"), **lora}
    arguments = {name: value for name, value in arguments.items() if name not in ("lora_rank", "lora_target")}
    path.write_text(json.dumps({**arguments, "export_dir": str(merged), "infer_dtype": "float32"}), "utf-8")
    assert cli.main(["export", str(path)]) == 0

    model = enable_hsa(AutoModelForCausalLM.from_pretrained(merged))
    assert get_state(model).config == HSA
    assert json.loads((merged / "config.json").read_text("utf-8")).get("attn_implementation") is None
    ids = AutoTokenizer.from_pretrained(merged)("open the fridge", return_tensors="pt").input_ids
    output = model.eval().generate(
        input_ids=ids, semantic_ids=torch.full_like(ids, 2), max_new_tokens=4, do_sample=False
    )
    assert output.shape[1] <= ids.shape[1] + 4

    (tmp_path / "plain.json").write_text(
        path.read_text("utf-8").replace(str(merged), str(tmp_path / "plain")), "utf-8"
    )
    assert cli.main(["export", str(tmp_path / "plain.json"), "hsa=false"]) == 0
    assert not (tmp_path / "plain" / "hsa_config.json").exists()


def test_a_model_exported_for_vllm(lf, tmp_path, checkpoint, capsys, monkeypatch):
    """It has another architecture's name, and is the same model to everybody else."""
    from transformers import AutoModelForCausalLM

    from hsa_factory import cli

    monkeypatch.delenv("HSA_FACTORY_DEBUG", raising=False)
    values = {"model_name_or_path": str(checkpoint), "template": "qwen3_nothink", "infer_dtype": "float32"}
    path, served = tmp_path / "export.json", tmp_path / "served"
    path.write_text(json.dumps({**values, "export_dir": str(served), "export_for": "vllm"}), "utf-8")
    assert cli.main(["export", str(path)]) == 0
    assert json.loads((served / "config.json").read_text("utf-8"))["architectures"] == ["HSAQwen3ForCausalLM"]
    model = enable_hsa(AutoModelForCausalLM.from_pretrained(served))
    assert get_state(model).config == HSA
    assert answers(served, "saved") == answers(checkpoint, HSA)

    other = tmp_path / "other"
    HSA.save_pretrained(other)
    (other / "config.json").write_text('{"architectures": ["Gemma2ForCausalLM"]}', "utf-8")
    for change, message in (
        (f"model_name_or_path={other}", "not for Gemma2ForCausalLM"),  # before anything is merged
        ("export_for=vlm", "Did you mean 'vllm'"),
        ("hsa=false", "this one has none"),
        ("export_hub_model_id=me/model", "Leave export_hub_model_id out"),
        ("stage=rm", "not for reward models"),
    ):
        assert cli.main(["export", str(path), change]) == 2
        assert message in capsys.readouterr().err


def test_exporting_a_model_without_hsa_adds_nothing(lf, tmp_path):
    from hsa_factory import cli

    path = tmp_path / "export.json"
    values = {"model_name_or_path": str(lf.model_dir("qwen3")), "template": "qwen3_nothink"}
    path.write_text(json.dumps({**values, "export_dir": str(tmp_path / "again")}), "utf-8")
    assert cli.main(["export", str(path)]) == 0
    assert (tmp_path / "again" / "config.json").is_file()
    assert not (Path(tmp_path) / "again" / "hsa_config.json").exists()
