"""Stage `pt`: raw text with types by rules, packed and not."""

import json
from pathlib import Path

import pytest
import yaml

from hsa_factory import FeedbackConfig, HSAConfig, cli


RULES = [
    {"name": "event", "pattern": "(<m1>)+", "type": "LANDMARK"},
    {"name": "walk", "pattern": "(<m2>)+", "type": "NOISE"},
]
HSA = HSAConfig(noise_window=3, rules=RULES)
M = "<|feedback|>"
TUNINGS = [
    {"packing": True},
    {"packing": False, "finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"},
]


def arguments(lf, directory, **more):
    samples = [{"text": "<m0><m1><m2><m2><m2><m2><m2><m3>" * (2 + k)} for k in range(6)]
    data = lf.write_data(directory, data=({"columns": {"prompt": "text"}}, samples))
    return lf.args(data, "data", **{"stage": "pt", "cutoff_len": 32, "per_device_train_batch_size": 2, **more})


@pytest.mark.parametrize("tuning", TUNINGS, ids=["full", "lora"])
def test_all_global_is_plain_and_types_matter(lf, tmp_path, tuning):
    args = arguments(lf, tmp_path, **tuning)
    plain = lf.train(args)
    assert lf.train(args, HSAConfig(noise_window=3)) == pytest.approx(plain, abs=1e-6)  # no rule: all are GLOBAL
    typed = lf.train(args, HSA)
    assert all(abs(one - other) > 1e-4 for one, other in zip(typed, plain))
    assert HSAConfig.from_pretrained(args["output_dir"]) == HSA
    report = json.loads((Path(args["output_dir"]) / "hsa_report.json").read_text("utf-8"))["datasets"]["data"]
    assert all(report["tokens"].values()) and report["trained_share"] == 1


def test_a_model_that_sees_pictures_learns_from_text(lf, tmp_path):
    args = arguments(lf, tmp_path, model=lf.model_dir("qwen2_5_vl"), template="qwen2_vl", max_steps=1)
    plain = lf.train(args)
    assert lf.train(args, HSAConfig()) == pytest.approx(plain, abs=1e-6) != lf.train(args, HSA)


def test_feedback_alone_and_evaluation(lf, tmp_path):
    args = arguments(lf, tmp_path, packing=False, val_size=2, do_eval=True, max_steps=1)
    path = tmp_path / "data.json"
    path.write_text(path.read_text("utf-8").replace("<m3>", f"<m3>{M}"), "utf-8")
    losses = lf.train(args, None, FeedbackConfig())
    results = json.loads((Path(args["output_dir"]) / "eval_results.json").read_text("utf-8"))
    assert results["eval_perplexity"] > 1 and losses != lf.train(args)


def test_going_on_from_a_checkpoint(lf, tmp_path):
    args = arguments(lf, tmp_path, save_strategy="steps", save_steps=1)
    losses = lf.train(args, HSA)
    resumed = {**args, "resume_from_checkpoint": str(Path(args["output_dir"]) / "checkpoint-1")}
    assert lf.train({**resumed, "overwrite_output_dir": False}, HSA) == losses


def test_inspect_shows_texts(lf, tmp_path, capsys):
    args = arguments(lf, tmp_path)
    (tmp_path / "pt.yaml").write_text(yaml.safe_dump({**args, "hsa": {"rules": RULES}}), "utf-8")
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "pt.yaml"), "--format", "json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"index"')]
    assert [row["labels"] for row in rows] == [row["input_ids"] for row in rows]
    assert [turn["role"] for turn in rows[0]["turns"]] == ["text", "text"]
    assert [(part["index"], part["start"]) for part in rows[1]["samples"]] == [(1, 0), (2, 10)]
    assert cli.main(["inspect", str(tmp_path / "pt.yaml"), "--check", "--max-blind", "0"]) == 0


@pytest.mark.parametrize(
    ("hsa", "feedback", "message"),
    [
        (HSAConfig(noise_turns=1), None, "hsa.noise_turns: .* `stage: pt` has none. Set hsa.noise_window in"),
        (None, FeedbackConfig(scope="user"), "feedback.scope = 'user' .*no messages"),
        (None, FeedbackConfig(train="recovery"), "feedback.train = 'recovery' .*no messages"),
    ],
)
def test_what_needs_messages_is_refused(lf, tmp_path, hsa, feedback, message):
    with pytest.raises(ValueError, match=message):
        lf.train(arguments(lf, tmp_path), hsa, feedback)


@pytest.mark.parametrize(("hsa", "feedback"), [(HSA, None), (None, FeedbackConfig())])
def test_ppo_is_refused_because_it_does_not_start(lf, tmp_path, hsa, feedback):
    args = arguments(lf, tmp_path, stage="ppo")  # nor is a reward model asked for first
    with pytest.raises(
        ValueError, match="`stage: ppo` does not start .*trl>=0.8.6,<=0.9.6.*`stage: dpo` or `stage: kto`"
    ):
        lf.train(args, hsa, feedback)
