"""Stage `kto`: policy, reference and KL half have HSA, each with its own types."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from llamafactory.train.kto.trainer import CustomKTOTrainer
from peft import LoraConfig, get_peft_model
from probe import assert_hsa_reaches, probe_batch

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.llamafactory import integrate
from hsa_factory.models.enable import get_state


HSA = HSAConfig(noise_window=3)
M = "<|feedback|>"
TUNINGS = {
    "full": {},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "lora": {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"},
}


def arguments(lf, directory, has_pictures=False, kinds=("GLOBAL", "NOISE", "NOISE", "LANDMARK"), **more):
    """Return arguments for a run on two desired and two undesired replies."""
    paths = lf.images(directory / "images", [(56, 56), (84, 56), (56, 84), (56, 56)]) if has_pictures else []
    samples = []
    for k in range(4):
        messages = lf.dialogue(kinds, words=4 + k, first_mark=4 * k)
        samples.append({"messages": messages, "label": k % 2 == 0})
        if has_pictures:
            messages[0]["content"] += "<image>"
            samples[-1]["images"] = [paths[k]]
    columns = {"messages": "messages", "kto_tag": "label"} | ({"images": "images"} if has_pictures else {})
    entry = {"formatting": "sharegpt", "columns": columns, "tags": lf.TAGS}
    model = {"model": lf.model_dir("qwen2_5_vl"), "template": "qwen2_vl"} if has_pictures else {}
    common = {"stage": "kto", "template": "qwen3_nothink", "per_device_train_batch_size": 2, **model, **more}
    return lf.args(lf.write_data(directory, data=(entry, samples)), "data", **common)


def steps(args):
    """Return what was logged of each step."""
    state = json.loads((Path(args["output_dir"]) / "trainer_state.json").read_text("utf-8"))
    return [entry for entry in state["log_history"] if "loss" in entry]


@pytest.mark.parametrize(
    ("tuning", "has_pictures"),
    [("full", False), pytest.param("freeze", False, marks=pytest.mark.long), ("lora", False), ("full", True)],
)
def test_all_global_is_plain_and_types_matter(lf, tmp_path, tuning, has_pictures):
    """The first step is 0.5 with margin 0: with the same weights policy and reference are the same, in both halves."""
    args = arguments(lf, tmp_path, has_pictures, [None] * 4, **TUNINGS[tuning])
    plain = lf.train(args)
    assert lf.train(args, HSA) == pytest.approx(plain, abs=1e-6)  # no message has a type: all are GLOBAL

    args = arguments(lf, tmp_path, has_pictures, **TUNINGS[tuning])
    losses = lf.train(args, HSA)
    first = steps(args)[0]
    assert first["loss"] == pytest.approx(0.5, abs=1e-6) and first["kl"] == pytest.approx(0, abs=1e-4)
    assert all(
        first[f"rewards/{side}"] == pytest.approx(0, abs=1e-5)
        for side in ("chosen", "rejected")
        if f"rewards/{side}" in first
    )
    assert losses[1] != pytest.approx(plain[1], abs=1e-5)
    assert HSAConfig.from_pretrained(args["output_dir"]) == HSA


def test_a_reference_without_hsa_would_show(lf, tmp_path, monkeypatch):
    """The control of the one above."""
    from hsa_factory.llamafactory.model import loader
    from hsa_factory.llamafactory.train import kto

    enable_hsa, forward, models = loader.enable_hsa, kto._forward, []

    def enable_the_first(model, config, **options):
        models.append(model)
        return enable_hsa(model, config, **options) if len(models) == 1 else model

    def forward_with_types_where_they_are_known(original, trainer, model, batch, prefix=""):
        known = batch if get_state(model) is not None else {k: v for k, v in batch.items() if "semantic_ids" not in k}
        return forward(original, trainer, model, known, prefix)

    monkeypatch.setattr(loader, "enable_hsa", enable_the_first)
    monkeypatch.setattr(kto, "_forward", forward_with_types_where_they_are_known)
    assert abs(lf.train(arguments(lf, tmp_path, max_steps=1), HSA)[0] - 0.5) > 1e-4 and len(models) == 2


def test_feedback_changes_the_loss(lf, tmp_path):
    args = arguments(lf, tmp_path, max_steps=1, max_samples=2)
    path = tmp_path / "data.json"
    path.write_text(path.read_text("utf-8").replace("<m3><m3>", f"<m3>{M}<m3>", 1), "utf-8")
    lf.train(args, HSA, FeedbackConfig())
    logged = steps(args)[0]
    lf.train(args, HSA)
    other = steps(args)[0]
    assert logged["loss"] == other["loss"] == pytest.approx(0.5, abs=1e-6)
    assert logged["logps/chosen"] > other["logps/chosen"] and logged["logps/rejected"] == pytest.approx(
        other["logps/rejected"], abs=1
    )


def test_evaluation(lf, tmp_path):
    args = arguments(lf, tmp_path, val_size=0.5, eval_strategy="steps", eval_steps=1, max_steps=1, do_eval=True)
    lf.train(args, HSA)
    results = json.loads((Path(args["output_dir"]) / "eval_results.json").read_text("utf-8"))
    assert 0 < results["eval_loss"] < 1


@pytest.mark.parametrize("adapter", ["", "on", "off"])
@pytest.mark.parametrize("prefix", ["", "kl_"])
def test_types_reach_every_forward(lf, prefix, adapter):
    """Policy and reference are asked for both halves by the same method, the latter with the adapter off where there is one."""
    model = lf.model(lf.model_dir("qwen3"), HSA)
    if adapter:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()

    def forward(inputs):
        batch = {prefix + name: values for name, values in inputs.items()}
        with model.disable_adapter() if adapter == "off" else nullcontext():
            return CustomKTOTrainer.forward(None, model, batch, prefix)[0]

    with integrate(HSA):
        assert_hsa_reaches(model, probe_batch(), forward=forward)
