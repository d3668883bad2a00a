"""Stage `dpo`: HSA in the trained model and in its reference, as plain LLaMA-Factory where all types are GLOBAL."""

import json
import math
from pathlib import Path

import llamafactory.train.trainer_utils
import pytest
import torch
from probe import assert_hsa_reaches, probe_batch

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.llamafactory import integrate
from hsa_factory.llamafactory.data.pairwise_collator import HSAPairwiseCollator


HSA = HSAConfig(noise_window=4, landmark_decay=0.05)
ALL_GLOBAL = HSAConfig(noise_window=None, noise_decay=0, landmark_decay=0)
ENTRY = {
    "formatting": "sharegpt",
    "ranking": True,
    "columns": {"messages": "messages", "chosen": "chosen", "rejected": "rejected"},
}
LORA = {"finetuning_type": "lora", "lora_target": "q_proj,v_proj"}
TUNING = {"full": {}, "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1}, "lora": LORA}


def pairs(lf, number=4, image=None):
    """Return pairs of two turns, the first reply NOISE; of other lengths each."""
    made = []
    for k in range(number):
        start = "<image>" if image else ""
        prompt = [
            lf.say("user", start + lf.MARKS[1] * 9, "GLOBAL"),
            lf.say("assistant", lf.MARKS[2] * (12 + k), "NOISE"),
            lf.say("user", lf.MARKS[3 + k] * 4, "LANDMARK"),
        ]
        chosen, rejected = (
            lf.say("assistant", lf.MARKS[8] * (3 + k), "GLOBAL"),
            lf.say("assistant", lf.MARKS[9] * 6, "NOISE"),
        )
        made.append(
            {"messages": prompt, "chosen": chosen, "rejected": rejected} | ({"images": [image]} if image else {})
        )
    return made


@pytest.fixture(scope="module")
def data(lf, tmp_path_factory):
    directory = tmp_path_factory.mktemp("pairs")
    return lf.write_data(directory, pairs=({**ENTRY, "tags": lf.TAGS}, pairs(lf)))


@pytest.fixture
def run(lf, data, tmp_path):
    """Train; return the logged values of the steps."""
    made = []

    def call(hsa=None, feedback=None, data_dir=data, **more):
        made.append(str(tmp_path / f"out{len(made)}"))
        values = {"stage": "dpo", "per_device_train_batch_size": 2, "output_dir": made[-1], **more}
        lf.train(lf.args(data_dir, "pairs", **values), hsa, feedback)
        state = json.loads(Path(values["output_dir"], "trainer_state.json").read_text("utf-8"))
        return [entry for entry in state["log_history"] if "loss" in entry]

    return call


def losses(entries):
    return [entry["loss"] for entry in entries]


@pytest.mark.parametrize("tuning", ["full", pytest.param("freeze", marks=pytest.mark.long), "lora"])
def test_all_global_is_plain_llamafactory(run, tuning):
    plain, ours = run(**TUNING[tuning]), run(ALL_GLOBAL, **TUNING[tuning])
    assert losses(ours) == pytest.approx(losses(plain), abs=1e-6)
    assert plain[1]["loss"] != plain[0]["loss"]


@pytest.mark.parametrize("loss", ["orpo", "simpo"])
def test_losses_without_a_reference(run, loss):
    more = {"pref_loss": loss}
    plain, ours, typed = run(**more), run(ALL_GLOBAL, **more), run(HSA, max_steps=1, **more)
    assert losses(ours) == pytest.approx(losses(plain), abs=1e-6)
    assert abs(typed[0]["loss"] - plain[0]["loss"]) > 1e-4


@pytest.mark.parametrize("tuning", TUNING)
def test_a_reference_with_the_same_weights_has_no_margin(run, tuning):
    first, second = run(HSA, **TUNING[tuning])
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and first["rewards/margins"] == 0
    assert second["rewards/margins"] != 0


def test_a_new_feedback_token_leaves_the_reference_equal(run):
    assert run(HSA, FeedbackConfig(), max_steps=1)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_reference_without_hsa_would_give_another_loss(run, monkeypatch):
    """The control: what step 1 shows is the reference's attention."""
    from hsa_factory.llamafactory.train import reference

    monkeypatch.setattr(
        reference, "load_reference", lambda state, original, *args, **kwargs: original(*args, **kwargs)
    )
    loaded = []
    create = llamafactory.train.trainer_utils.load_model
    monkeypatch.setattr(
        llamafactory.train.trainer_utils,
        "load_model",
        lambda *args, **kwargs: loaded.append(1) or create(*args, **kwargs),
    )
    (first,) = run(HSA, max_steps=1, pref_beta=1.0)
    assert loaded and abs(first["loss"] - math.log(2)) > 1e-3


def test_the_sft_loss_is_added(run):
    assert run(HSA, max_steps=1, pref_ftx=0.5)[0]["loss"] > math.log(2) + 0.5


def test_losses_that_llamafactory_only_names_are_said(run, caplog):
    run(HSA, max_steps=1, pref_loss="ipo")
    assert "`pref_loss: ipo`: LLaMA-Factory does not tell trl" in caplog.text


def test_images(lf, run, tmp_path):
    (image,) = lf.images(tmp_path / "images", [(56, 56)])
    entry = {**ENTRY, "tags": lf.TAGS, "columns": {**ENTRY["columns"], "images": "images"}}
    directory = lf.write_data(tmp_path / "data", pairs=(entry, pairs(lf, 2, image)))
    more = {
        "model": lf.model_dir("qwen2_5_vl"),
        "template": "qwen2_vl",
        "data_dir": directory,
        "image_max_pixels": 3136,
    }
    plain, ours, typed = run(**more), run(ALL_GLOBAL, **more), run(HSA, **more)
    assert losses(ours) == pytest.approx(losses(plain), abs=1e-6)
    assert typed[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and typed[1]["loss"] != plain[1]["loss"]


def test_a_run_goes_on_from_its_checkpoint(run, tmp_path):
    out = str(tmp_path / "resumed")
    whole = run(HSA, max_steps=4)
    run(HSA, max_steps=4, output_dir=out, save_strategy="steps", save_steps=2)
    checkpoint = f"{out}/checkpoint-2"
    assert HSAConfig.from_pretrained(checkpoint) == HSA
    assert losses(run(HSA, max_steps=4, output_dir=out, resume_from_checkpoint=checkpoint)) == losses(whole)


def test_evaluation_streams_and_tokenized_data(run, tmp_path):
    whole = losses(run(HSA, disable_shuffling=True))
    tokenized = {"tokenized_path": str(tmp_path / "tokenized"), "disable_shuffling": True}
    assert losses(run(HSA, **tokenized)) == losses(run(HSA, **tokenized)) == whole
    assert losses(run(HSA, streaming=True, disable_shuffling=True, buffer_size=1, dataloader_num_workers=0)) == whole
    run(HSA, val_size=2, eval_strategy="steps", eval_steps=1, output_dir=str(tmp_path / "eval"))
    history = json.loads((tmp_path / "eval" / "trainer_state.json").read_text("utf-8"))["log_history"]
    assert [entry for entry in history if math.isfinite(entry.get("eval_loss", math.nan))]
    with pytest.raises(ValueError, match="was made with stage 'dpo', this run asks for 'sft'|has no column"):
        run(HSA, stage="sft", **tokenized)


def test_a_reference_model_with_other_rules_is_refused(lf, run, tmp_path):
    other = lf.save_checkpoint(tmp_path / "other", HSAConfig(noise_window=9))
    with pytest.raises(ValueError, match="was made with another HSA configuration"):
        run(HSA, max_steps=1, ref_model=str(other))
    with pytest.raises(
        ValueError, match=r"reference model .*other was made with HSA, and the model that is trained was not"
    ):
        run("saved", max_steps=1, ref_model=str(other))
    assert run(HSAConfig(noise_window=9), max_steps=1, ref_model=str(other))


@pytest.mark.parametrize("is_disabled", [False, True])
def test_probe(lf, data, tmp_path, is_disabled):
    """A token out of sight moves neither the policy nor the reference, which is the model without its adapter."""
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer
    from llamafactory.train.dpo import workflow

    hsa = HSAConfig(noise_window=3)
    with integrate(hsa):
        args = lf.args(data, "pairs", stage="dpo", output_dir=str(tmp_path), **LORA)
        model_args, _, _, finetuning_args, _ = get_train_args(args)
        model = workflow.load_model(load_tokenizer(model_args)["tokenizer"], model_args, finetuning_args, True)
    batch = probe_batch()

    def forward(inputs):
        inputs = {name: values for name, values in inputs.items() if name != "labels"}
        return model(**inputs, use_cache=False).logits

    if is_disabled:
        with model.disable_adapter():
            assert_hsa_reaches(model, batch, forward=forward)
    else:
        assert_hsa_reaches(model, batch, forward=forward)


def test_the_batch_is_llamafactorys_with_types(lf, data, tmp_path):
    from llamafactory.data import PairwiseDataCollatorWithPadding

    prepared = lf.prepare(lf.args(data, "pairs", stage="dpo", output_dir=str(tmp_path)), HSAConfig(noise_turns=1))
    rows = prepared.rows()[:2]
    plain_rows = lf.prepare(lf.args(data, "pairs", stage="dpo", output_dir=str(tmp_path / "plain"))).rows()[:2]
    values = {
        "template": prepared.template,
        "tokenizer": prepared.tokenizer,
        "processor": None,
        "pad_to_multiple_of": 8,
    }
    batch = HSAPairwiseCollator(**values, hsa_config=HSAConfig(noise_turns=1))(rows)
    plain = PairwiseDataCollatorWithPadding(**values)(plain_rows)
    assert set(batch) == {*plain, "semantic_ids", "turn_ids"}
    for name in plain:
        assert torch.equal(batch[name], plain[name])
    for k, side in enumerate(("chosen", "rejected")):
        for place, row in enumerate(rows):
            length, line = len(row[f"{side}_input_ids"]), 2 * k + place
            padding = batch["attention_mask"][line] == 0
            assert (~padding).sum() == length
            assert batch["semantic_ids"][line][~padding].tolist() == row[f"{side}_semantic_ids"]
            assert batch["turn_ids"][line][~padding].tolist() == row[f"{side}_turn_ids"]
            assert (batch["semantic_ids"][line][padding] == 2).all()
