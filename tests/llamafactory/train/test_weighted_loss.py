"""Weights from the data file to the loss: a weighted mean, however the batch is cut up."""

import json
from pathlib import Path

import pytest
import torch

from hsa_factory import FeedbackConfig, HSAConfig, LossWeightsConfig
from hsa_factory.llamafactory import integrate
from hsa_factory.llamafactory.train.weighted_loss import weighted_loss


HSA = HSAConfig(noise_window=5)
END = "<|im_end|>\n"


def dialogue(lf, *weights, first=0):
    """Return user and assistant messages in turn, message k being two of mark `first` + k; `...` is no weight."""
    messages = lf.dialogue([k % 3 for k in range(len(weights))], words=2, first_mark=first)
    return [
        message if weight is ... else {**message, **(weight if isinstance(weight, dict) else {"weight": weight})}
        for message, weight in zip(messages, weights, strict=True)
    ]


SAMPLES = [(..., 0.5, ..., 2), (..., 3, 0.25, {"loss": True}), (..., 1, ..., 0, ..., 0.125), (..., 7)]


@pytest.fixture
def samples(lf):
    return [dialogue(lf, *weights, first=6 * k) for k, weights in enumerate(SAMPLES)]


@pytest.fixture
def prepare(lf, tmp_path):
    def run(samples, config=None, feedback=None, hsa=HSA, **options):
        data = lf.write_data(tmp_path, data=samples)
        args = lf.args(data, "data", template="qwen3_nothink", **options)
        return lf.prepare(args, hsa, feedback, config)

    return run


def trained(prepared, row=0):
    """Return the text of the trained tokens of each weight."""
    row = prepared.rows()[row]
    weights = row.get("loss_weights") or [1.0] * len(row["labels"])
    found = {}
    for label, keep, weight in zip(row["labels"], row["loss_mask"], weights, strict=True):
        if label != -100 and keep:
            found.setdefault(weight, []).append(label)
    return {weight: prepared.text(ids) for weight, ids in found.items()}


# -- which tokens ----------------------------------------------------------------------------------------------


def test_replies_and_observations_have_their_weights(lf, prepare, samples):
    prepared = prepare(samples)
    assert trained(prepared) == {0.5: "<m1><m1>" + END, 2: "<m3><m3>" + END}
    opened = END + "<|im_start|>assistant\n"
    assert trained(prepared, 1) == {
        3: "<m7><m7>" + END,
        0.25: "<|im_start|>user\n<m8><m8>" + opened,  # an observation, with train_on_prompt off
        1: "<m9><m9>" + END,
    }
    assert trained(prepared, 2) == {1: "<m13><m13>" + END, 0.125: "<m17><m17>" + END}
    counts = prepared.counts
    weights = [
        weight
        for row in range(4)
        for weight, text in trained(prepared, row).items()
        for _ in prepared.tokenizer.encode(text)
    ]
    assert counts["weighed_tokens"] == sum(weight != 1 for weight in weights)
    assert counts["sum_of_weights"] == sum(weights) and counts["trained_tokens"] == len(weights)


def test_without_weights_there_is_no_column(lf, prepare):
    prepared = prepare([dialogue(lf, ..., 1, 1, 0, ..., {"loss": True}), dialogue(lf, ..., {"step_label": "good"})])
    assert "loss_weights" not in prepared.rows()[0]
    assert trained(prepared) == {1: "<m1><m1>" + END + "<m5><m5>" + END}
    assert prepared.counts["weighed_tokens"] == 0


def test_step_labels_and_roles(lf, prepare):
    step = [{"step_label": label} for label in ("mistake", "recover", "good")]
    sample = dialogue(lf, ..., step[0], ..., step[1], 1, step[2], ..., 2)
    prepared = prepare([sample], feedback=None)
    assert trained(prepared) == {1: f"<m3><m3>{END}<m5><m5>{END}", 2: "<m7><m7>" + END}
    assert prepared.counts["notes"] == {f"step_label {label!r}": 1 for label in ("mistake", "recover", "good")}

    config = LossWeightsConfig(step_labels={"mistake": 0.5}, roles={"user": 0.25})
    prepared = prepare([sample], config, hsa=None)  # with this block alone
    found = trained(prepared)
    assert found[0.5] == "<m1><m1>" + END and "<m2><m2>" in found[0.25] and "<m6><m6>" in found[0.25]
    assert found[1] == f"<m3><m3>{END}<|im_start|>user\n<m4><m4>{END}<|im_start|>assistant\n<m5><m5>{END}"


def test_what_stands_before_a_conversation_is_not_trained_with_its_first_message(lf, prepare):
    sample = [lf.say("system", "<m9>"), *dialogue(lf, 0.5, 1)]
    assert trained(prepare([sample])) == {
        0.5: "<|im_start|>user\n<m0><m0>" + END + "<|im_start|>assistant\n",
        1: "<m1><m1>" + END,
    }
    sample[0]["weight"] = 0.5
    with pytest.raises(ValueError, match="sample 0, turn 0: .*its weight 0.5 cannot be honoured"):
        prepare([sample])


def test_feedback_and_mask_history_go_before_weights(lf, prepare):
    sample = dialogue(lf, ..., 2, 0.5, 3, 0.25, 4)
    sample[2]["content"] += "<|feedback|>"
    found = trained(prepare([sample], feedback=FeedbackConfig()))
    assert set(found) == {0.5, 3, 0.25, 4} and found[0.5] == END + "<|im_start|>assistant\n"
    assert set(trained(prepare([sample], mask_history=True))) == {0.25, 4}


def test_a_stop_token_has_the_weight_of_its_reply(lf, tmp_path):
    """Where it is the label of the next prompt's first id; what is left of that prompt keeps its own."""
    data = lf.write_data(tmp_path, data=[dialogue(lf, ..., 3, 0.5, 2, ..., 0)])
    prepared = lf.prepare(lf.args(data, "data", template="glm4"), HSA)
    row = prepared.rows()[0]
    eos = prepared.tokenizer.eos_token_id
    stops = [(w, keep) for label, w, keep in zip(row["labels"], row["loss_weights"], row["loss_mask"]) if label == eos]
    assert stops == [(3, 1), (2, 1), (1, 0)]


def test_packed_mixed_and_streamed_rows(lf, tmp_path, samples):
    plain = [dialogue(lf, ..., ..., first=24)]
    data = lf.write_data(tmp_path, data=samples, plain=plain)
    for options in ({}, {"preprocessing_num_workers": 2}, {"neat_packing": True, "cutoff_len": 256}):
        prepared = lf.prepare(lf.args(data, "plain,data", template="qwen3_nothink", **options), HSA)
        found = [
            (label, weight)
            for row in prepared.rows()
            for label, keep, weight in zip(row["labels"], row["loss_mask"], row["loss_weights"])
            if label != -100 and keep
        ]
        marks = lf.mark_ids(prepared.tokenizer)
        seen = sorted((marks[label], weight) for label, weight in found if label in marks)
        assert seen == sorted(
            2 * [(1, 0.5), (3, 2), (7, 3), (8, 0.25), (9, 1), (13, 1), (17, 0.125), (19, 7), (25, 1)]
        )
        starts = [part["start"] for row in prepared.rows() for part in json.loads(row["hsa_samples"])]
        assert len(starts) == 5


# -- the loss --------------------------------------------------------------------------------------------------


def by_hand(logits, labels, weights, smoothing=0.0):
    """Return the weighted mean, token by token, in float64."""
    parts, total = [], 0.0
    for i in range(len(labels)):
        for place in range(1, labels.shape[1]):
            if labels[i, place] != -100:
                logs = torch.log_softmax(logits[i, place - 1].double(), -1)
                loss = -(1 - smoothing) * logs[labels[i, place]] - smoothing * logs.mean()
                parts.append(weights[i, place].item() * loss)
                total += weights[i, place].item()
    return sum(parts) / total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_the_weighted_mean(smoothing):
    torch.manual_seed(0)
    logits = torch.randn(3, 7, 11, requires_grad=True)
    labels = torch.randint(0, 11, (3, 7)).masked_fill(torch.rand(3, 7) < 0.4, -100)
    weights = torch.rand(3, 7) * 4
    loss = weighted_loss({"logits": logits}, labels, weights=weights, label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = by_hand(logits, labels, weights, smoothing)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-5)

    pieces = [
        weighted_loss({"logits": logits[k : k + 1]}, labels[k : k + 1], 2.0, weights[k : k + 1]) for k in range(3)
    ]
    whole = weighted_loss({"logits": logits}, labels, 2.0, weights)
    assert sum(pieces).item() == pytest.approx(whole.item(), abs=1e-6)


def test_what_cannot_be_weighed():
    labels = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="returns no logits"):
        weighted_loss({"loss": 1}, labels)
    with pytest.raises(ValueError, match="the loss of its router"):
        weighted_loss({"logits": torch.zeros(1, 2, 3), "aux_loss": torch.ones(())}, labels)


@pytest.fixture
def train(lf, tmp_path, samples):
    data = lf.write_data(tmp_path, data=samples, first=samples[:1])

    def run(**options):
        values = {"dataset": "data", "template": "qwen3_nothink", "max_steps": 2, "per_device_train_batch_size": 4}
        values |= options
        return lf.train(lf.args(data, values.pop("dataset"), **values), HSA)

    return run


def test_however_the_batch_is_cut_up_the_loss_is_the_weighted_mean(lf, prepare, samples, train):
    """And so are its gradients: the second step's loss is that of the first step's update."""
    prepared = prepare(samples)
    batch = lf.collator(prepared, HSA)(prepared.rows())
    weights = batch.pop("loss_weights")
    assert weights.dtype == torch.float32 and weights.shape == batch["labels"].shape
    model = lf.model(lf.model_dir(), HSA)
    with torch.no_grad():
        logits = model(**{**batch, "labels": None}).logits
    expected = by_hand(logits, batch["labels"], weights).item()

    together = train()
    assert together[0] == pytest.approx(expected, abs=1e-5)
    apart = train(per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert apart == pytest.approx(together, abs=1e-5)
    packed = train(per_device_train_batch_size=1, neat_packing=True, cutoff_len=256)
    assert packed == pytest.approx(together, abs=1e-5)
    smoothed = train(label_smoothing_factor=0.2, max_steps=1)
    assert smoothed[0] == pytest.approx(by_hand(logits, batch["labels"], weights, 0.2).item(), abs=1e-5)


def test_evaluation_and_streams(lf, tmp_path, train):
    options = {
        "dataset": "first",
        "eval_dataset": "first",
        "eval_strategy": "steps",
        "eval_on_start": True,
        "eval_steps": 1,
    }
    losses = train(**options, max_steps=1)
    state = json.loads((Path(tmp_path) / "out" / "trainer_state.json").read_text("utf-8"))
    evaluated = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert evaluated[0] == pytest.approx(losses[0], abs=1e-5)
    assert train(dataset="first", streaming=True, max_steps=1) == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize("option", ["use_dft_loss", "use_eaft_loss", "moe_aux_loss_coef"])
def test_options_with_a_loss_of_their_own_are_refused(train, option):
    with pytest.raises(ValueError, match=f"messages of 'data' have weights other than 0 and 1, but `{option}` cannot"):
        train(**{option: 0.1 if option.startswith("moe") else True})


def test_liger_is_refused_by_its_name():
    from types import SimpleNamespace

    from hsa_factory.llamafactory.options import find_other_loss

    training = SimpleNamespace(parallelism_config=None, world_size=1, average_tokens_across_devices=True, n_gpu=1)
    model, tuning = SimpleNamespace(enable_liger_kernel=True), SimpleNamespace(use_asft_loss=False)
    assert "`enable_liger_kernel`" in find_other_loss(model, training, tuning)
    model.enable_liger_kernel = False
    assert find_other_loss(model, training, tuning) == ""
    training.world_size, training.average_tokens_across_devices = 2, False
    assert "`average_tokens_across_devices: false`" in find_other_loss(model, training, tuning)


def test_another_block_is_another_integration():
    with (
        integrate(None, None, LossWeightsConfig(roles={"user": 0.5})),
        pytest.raises(RuntimeError, match="other settings"),
        integrate(None, None, LossWeightsConfig()),
    ):
        pass
