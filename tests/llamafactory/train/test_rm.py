"""Reward models: pairs scored by a value head on a model with HSA, trained, saved, gone on from and evaluated."""

import json
from pathlib import Path

import pytest
import torch
from probe import assert_hsa_reaches, probe_batch
from safetensors.torch import load_file

from hsa_factory import FeedbackConfig, HSAConfig, cli, disable_hsa
from hsa_factory.llamafactory import integrate
from hsa_factory.models.enable import get_state


HSA = HSAConfig(noise_window=5)
M = "<|feedback|>"
LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"}
FREEZE = {"finetuning_type": "freeze", "freeze_trainable_layers": 1}
VALUE_HEAD = "value_head.safetensors"


def pairs(lf, number=4, kind=None, image=None):
    """Return pairs of replies to conversations of different lengths.

    Args:
        lf: The pipeline.
        number: Of pairs.
        kind: Type of all messages; None: several.
        image: Path of a picture in each first message.
    """
    samples = []
    for k in range(number):
        kinds = ["GLOBAL", "NOISE", "NOISE", "LANDMARK", "NOISE"] if kind is None else [kind] * 5
        messages = lf.dialogue(kinds, words=5 + 3 * k, first_mark=5 * (k % 5))
        chosen, rejected = ({"role": "assistant", "content": text * (k + 2)} for text in ("<m30>", "<m31><m32>"))
        sample = {"messages": messages, "chosen": chosen, "rejected": rejected}
        if image is not None:
            messages[0]["content"] = "<image>" + messages[0]["content"]
            sample["images"] = [image]
        samples.append(sample)
    return samples


def entry(lf, has_images=False):
    """Return what dataset_info.json says of pairs."""
    columns = {"messages": "messages", "chosen": "chosen", "rejected": "rejected"}
    columns |= {"images": "images"} if has_images else {}
    return {"formatting": "sharegpt", "ranking": True, "columns": columns, "tags": lf.TAGS}


@pytest.fixture
def text(lf, tmp_path):
    """Arguments for a run on text."""
    data = lf.write_data(tmp_path, data=(entry(lf), pairs(lf)), all_global=(entry(lf), pairs(lf, kind="GLOBAL")))
    return lf.args(data, "data", template="qwen3_nothink", stage="rm", per_device_train_batch_size=2)


@pytest.fixture
def pictures(lf, tmp_path):
    """Arguments for a run with pictures."""
    (path,) = lf.images(tmp_path / "images", [(84, 56)])
    samples = pairs(lf, 2, "GLOBAL", image=path)
    data = lf.write_data(tmp_path, all_global=(entry(lf, True), samples))
    return lf.args(data, "all_global", lf.model_dir("qwen2_5_vl"), template="qwen2_vl", stage="rm")


@pytest.mark.parametrize(
    ("kind", "tuning"),
    [("text", {}), pytest.param("text", FREEZE, marks=pytest.mark.long), ("text", LORA), ("pictures", LORA)],
    ids=["full", "freeze", "lora", "pictures"],
)
def test_all_global_is_plain_llamafactory(lf, request, kind, tuning):
    args = {**request.getfixturevalue(kind), **tuning, "dataset": "all_global"}
    plain = lf.train(args)
    assert lf.train(args, HSA) == pytest.approx(plain, abs=1e-6) and len(plain) == 2


def test_the_loss_is_that_of_rows_run_alone(lf, text, monkeypatch):
    """Types reach chosen and rejected alike, and each is scored at its last token, padded or not."""
    from trl import AutoModelForCausalLMWithValueHead

    forward, alone = AutoModelForCausalLMWithValueHead.forward, []

    def run_alone(self, **batch):
        self.eval()  # the value head has dropout
        for row, mask in enumerate(batch["attention_mask"]):
            inputs = {name: batch[name][row : row + 1, : mask.sum()] for name in ("input_ids", "semantic_ids")}
            assert set(inputs["semantic_ids"].flatten().tolist()) == {0, 1, 2}
            with torch.no_grad():
                alone.append(forward(self, **inputs)[2][0, -1])
        return forward(self, **batch)

    monkeypatch.setattr(AutoModelForCausalLMWithValueHead, "forward", run_alone)
    losses = lf.train({**text, "max_steps": 1, "per_device_train_batch_size": 4}, HSA)
    chosen, rejected = torch.stack(alone).split(4)
    assert losses == pytest.approx([-torch.nn.functional.logsigmoid(chosen - rejected).mean().item()], abs=1e-5)


def with_value_head(lf, hsa=HSA, **tuning):
    """Load a tiny reward model as `run_rm` does."""
    import llamafactory.train.rm.workflow as workflow
    from llamafactory.hparams import get_train_args

    args = lf.args(lf.directory, "none", stage="rm", template="qwen3_nothink", **tuning)
    with integrate(hsa):
        model_args, _, _, finetuning_args, _ = get_train_args(args)
        tokenizer = workflow.load_tokenizer(model_args)["tokenizer"]
        return workflow.load_model(tokenizer, model_args, finetuning_args, True, add_valuehead=True)


@pytest.mark.parametrize("tuning", [{}, LORA], ids=["full", "lora"])
def test_hsa_reaches_the_model_below_a_value_head(lf, tmp_path, tuning):
    model = with_value_head(lf, HSAConfig(noise_window=3), **tuning).eval()
    assert type(model).__name__ == "AutoModelForCausalLMWithValueHead" and get_state(model) is not None
    batch = probe_batch(labels=False)
    assert_hsa_reaches(model, batch, forward=lambda inputs: model(**inputs)[2][..., None])

    model.train()
    with pytest.raises(ValueError, match="semantic_ids"):
        model(input_ids=batch["input_ids"])
    with torch.no_grad():
        prompt = {name: batch[name][:1, :20] for name in ("input_ids", "semantic_ids", "attention_mask")}
        answer = model.eval().generate(**prompt, max_new_tokens=3, do_sample=False)
    assert torch.equal(answer, model.pretrained_model.generate(**prompt, max_new_tokens=3, do_sample=False))

    model.save_pretrained(str(tmp_path))
    assert HSAConfig.from_pretrained(tmp_path) == HSAConfig(noise_window=3)
    assert get_state(disable_hsa(model)) is None
    assert len(model(input_ids=batch["input_ids"])) == 3


@pytest.mark.parametrize("tuning", [{}, LORA], ids=["full", "lora"])
def test_rules_lie_beside_the_value_head(lf, text, tuning):
    args = {**text, **tuning, "save_strategy": "steps", "save_steps": 1, "eval_dataset": "data", "do_eval": True}
    lf.train({**args, "do_predict": True}, HSA)
    out = Path(args["output_dir"])
    for place in (out, out / "checkpoint-1", out / "checkpoint-2"):
        assert HSAConfig.from_pretrained(place) == HSA and (place / VALUE_HEAD).is_file()
        assert (place / ("adapter_config.json" if tuning else "config.json")).is_file()
        assert "## Hierarchical Semantic Attention" in (place / "README.md").read_text("utf-8")
    results = json.loads((out / "all_results.json").read_text("utf-8"))
    assert 0 <= results["eval_accuracy"] <= 1 and results["eval_loss"] == pytest.approx(results["predict_loss"])
    assert len((out / "generated_predictions.jsonl").read_text("utf-8").splitlines()) == 4

    account = json.loads((out / "hsa_report.json").read_text("utf-8"))["datasets"]["data"]
    assert (account["kept"], account["trained_tokens"]) == (4, 8)  # one score a reply

    start = {"adapter_name_or_path": str(out)} if tuning else {"model_name_or_path": str(out)}
    with pytest.raises(ValueError, match="another HSA configuration"):
        lf.train({**args, **start, "output_dir": str(out / "other")}, HSAConfig(noise_window=9))


def test_an_adapter_goes_on_from_a_checkpoint(lf, text):
    args = {**text, **LORA, "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    losses = lf.train(args, HSA)
    out = Path(args["output_dir"])
    end = {name: load_file(out / name) for name in ("adapter_model.safetensors", VALUE_HEAD)}
    again = lf.train({**args, "resume_from_checkpoint": str(out / "checkpoint-1")}, True)
    assert again == losses
    for name, tensors in end.items():
        assert all(torch.equal(tensors[key], tensor) for key, tensor in load_file(out / name).items())


@pytest.mark.parametrize("missing", ["train", "drop"])
def test_feedback_and_weights_take_nothing_of_what_is_scored(lf, text, tmp_path, missing):
    samples = pairs(lf, 3)
    samples[0]["chosen"]["content"] += M
    samples[1]["messages"][2]["content"] += M
    samples[2]["rejected"]["weight"] = 0
    data = lf.write_data(tmp_path / "more", marked=(entry(lf), samples))
    args = {**text, "dataset_dir": str(data), "dataset": "marked", "max_steps": 1}
    lf.train(args, HSA, FeedbackConfig(missing=missing))
    report = json.loads((Path(args["output_dir"]) / "hsa_report.json").read_text("utf-8"))["datasets"]["marked"]
    assert report["kept"] == (3 if missing == "train" else 2)
    (note, count) = next(iter((note, n) for note, n in report["notes"].items() if "scores them as they are" in note))
    assert count == (2 if missing == "train" else 1), note


def test_a_cut_leaves_pairs_that_have_no_label(lf, text):
    args = {**text, "cutoff_len": 1, "max_steps": 1}
    assert lf.train({**args, "dataset": "all_global"}, HSA) == pytest.approx(
        lf.train({**args, "dataset": "all_global"}), abs=1e-6
    )
    lf.train(args, HSA)


def test_the_example_runs_as_it_stands(lf, tmp_path, monkeypatch):
    example = Path(__file__).parents[3] / "examples" / "reward_model" / "train.yaml"
    monkeypatch.chdir(example.parents[2])
    given = {"model_name_or_path": lf.model_dir(), "output_dir": tmp_path, "cache_dir": tmp_path, "use_cpu": "true"}
    assert cli.main(["train", str(example), "max_steps=1", *(f"{key}={value}" for key, value in given.items())]) == 0
    assert (tmp_path / VALUE_HEAD).is_file() and (tmp_path / "hsa_config.json").is_file()
    report = json.loads((tmp_path / "hsa_report.json").read_text("utf-8"))
    assert report["datasets"]["household_pairs"]["sight"]["blind"] == 0
