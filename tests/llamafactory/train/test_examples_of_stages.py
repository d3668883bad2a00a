"""The examples of the other stages run as they stand, on a tiny model, and what they learn from is what they say."""

import json
import math
from pathlib import Path

import pytest

from hsa_factory import HSAConfig, cli


EXAMPLES = Path(__file__).parents[3] / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are part of the repository only")


@pytest.mark.parametrize(
    ("name", "dataset", "first_loss"), [("preference", "pairs", math.log(2)), ("kto", "replies", 0.5)]
)
def test_the_example_runs_as_it_stands(lf, tmp_path, monkeypatch, name, dataset, first_loss):
    monkeypatch.chdir(EXAMPLES.parent)
    given = {"model_name_or_path": lf.model_dir(), "output_dir": tmp_path, "cache_dir": tmp_path, "use_cpu": "true"}
    arguments = [f"{key}={value}" for key, value in given.items()]
    assert cli.main(["train", str(EXAMPLES / name / "train.yaml"), "max_steps=2", *arguments]) == 0
    first, second = lf.losses(tmp_path)
    assert first == pytest.approx(first_loss, abs=1e-6) and second != first
    assert HSAConfig.from_pretrained(tmp_path) == HSAConfig(noise_window=50)
    account = json.loads((tmp_path / "hsa_report.json").read_text("utf-8"))["datasets"][dataset]
    assert account["sight"]["blind"] == 0 and min(account["tokens"].values()) > 0


def test_pairs_of_the_example_are_made_of_its_trajectories(tmp_path):
    made = tmp_path / "pairs.jsonl"
    assert cli.main(["pairs", str(EXAMPLES / "preference" / "trajectories.jsonl"), "--out", str(made)]) == 0
    assert made.read_bytes() == (EXAMPLES / "preference" / "pairs.jsonl").read_bytes()
