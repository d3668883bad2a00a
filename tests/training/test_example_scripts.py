"""The examples of training without LLaMA-Factory run as they stand."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from runs import trl_class

from hsa_factory import HSAConfig


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(("name", "options"), [("trainer.py", []), ("trl_sft.py", ["--packing", "--lora"])])
def test_losses_fall_and_the_rules_are_saved(name, options, monkeypatch, capsys, tmp_path):
    pytest.importorskip("accelerate")
    if name.startswith("trl"):
        pytest.importorskip("peft")
        trl_class("SFTTrainer")
    assert len((EXAMPLES / name).read_text("utf-8").splitlines()) < 60
    monkeypatch.setattr(sys, "argv", [name, *options])
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    (line,) = re.findall(r"^losses: \[(.*)\]$", capsys.readouterr().out, re.MULTILINE)
    losses = [float(number) for number in line.split(", ")]
    assert len(losses) == 8 and losses[-1] < 0.6 * losses[0]
    assert HSAConfig.from_pretrained(tmp_path).noise_window == 20
