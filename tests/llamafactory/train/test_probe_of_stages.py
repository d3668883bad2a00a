"""The probe for silence through each stage's own trainer: what LLaMA-Factory's losses are made of, policy and reference."""

from functools import partial

import pytest
import torch
import transformers
from llamafactory.train.tuner import run_exp
from probe import assert_hsa_reaches, probe_batch

from hsa_factory import HSAConfig, disable_hsa
from hsa_factory.llamafactory import integrate


HSA = HSAConfig(noise_window=3)
WINDOWS = {0: None, 1: None}  # of two layers, without sliding windows
TUNINGS = {"two models": {}, "one adapter": {"finetuning_type": "lora", "lora_target": "q_proj,v_proj"}}


class _StoppedError(Exception):
    """Training would begin now."""


@pytest.fixture
def trainer_of(lf, tmp_path, monkeypatch):
    """Make a stage's trainer as LLaMA-Factory does with HSA on; return it and its first batch."""

    def make(stage, **more):
        made = []

        def stop(trainer, *args, **kwargs):
            made.append(trainer)
            raise _StoppedError

        monkeypatch.setattr(transformers.Trainer, "train", stop)
        prompt = [lf.say("user", lf.MARKS[k] * 4, "NOISE") for k in range(2)]
        reply = lf.say("assistant", lf.MARKS[5] * 4, "GLOBAL")
        if stage == "kto":
            columns = {"messages": "messages", "kto_tag": "label"}
            samples = [{"messages": [message, reply], "label": k == 0} for k, message in enumerate(prompt)]
        else:
            columns = {"messages": "messages", "chosen": "chosen", "rejected": "rejected"}
            samples = [{"messages": [message], "chosen": reply, "rejected": reply} for message in prompt]
        entry = {"formatting": "sharegpt", "ranking": stage != "kto", "columns": columns, "tags": lf.TAGS}
        directory = lf.write_data(tmp_path / "data", data=(entry, samples))
        args = lf.args(directory, "data", stage=stage, per_device_train_batch_size=2, output_dir=str(tmp_path), **more)
        with pytest.raises(_StoppedError):
            run_exp(args)
        (trainer,) = made
        return trainer, next(iter(trainer.get_train_dataloader()))

    with integrate(HSA):
        yield make


def spread(values, inputs):
    """Return the values of some rows each as if all positions had it: (B, L, 1), what the probe looks at."""
    return torch.cat(list(values)).float()[:, None, None].expand(-1, inputs["input_ids"].shape[1], 1)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_log_probabilities_of_pairs(trainer_of, tuning):
    trainer, own = trainer_of("dpo", **TUNINGS[tuning])
    batch = probe_batch()
    assert set(own) == set(batch)
    assert (trainer.ref_model is None) == (tuning == "one adapter")

    def policy(inputs):
        output = trainer.concatenated_forward(trainer.model, dict(inputs))
        return spread([output["chosen_logps"], output["rejected_logps"]], inputs)

    def reference(inputs):
        return spread(trainer.compute_reference_log_probs(trainer.model, dict(inputs)), inputs)

    for forward in (policy, reference):
        assert_hsa_reaches(trainer.model, batch, HSA, WINDOWS, forward)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_log_probabilities_of_labelled_replies(trainer_of, tuning):
    trainer, own = trainer_of("kto", **TUNINGS[tuning])
    batch = probe_batch()
    assert set(own) == {*batch, *(f"kl_{name}" for name in batch), "kto_tags"}

    def both_halves(inputs, prefix):
        halves = {**batch, **{f"kl_{name}": values for name, values in batch.items()}}
        return {**halves, **{prefix + name: values for name, values in inputs.items()}, "kto_tags": own["kto_tags"]}

    def policy(inputs, prefix):
        chosen, rejected, _, _, kl, _ = trainer.concatenated_forward(trainer.model, both_halves(inputs, prefix))
        return spread([kl] if prefix else [chosen, rejected], inputs)

    def reference(inputs, prefix):
        *target, kl = trainer.compute_reference_log_probs(trainer.model, both_halves(inputs, prefix))
        return spread([kl] if prefix else target, inputs)

    assert own["kto_tags"].tolist() in ([True, False], [False, True])
    own["kto_tags"] = torch.tensor([True, False])  # the probe looks at the first row
    for forward in (policy, reference):
        for prefix in ("", "kl_"):
            assert_hsa_reaches(trainer.model, batch, HSA, WINDOWS, partial(forward, prefix=prefix))


@pytest.mark.parametrize("tuning", TUNINGS)
def test_scores(trainer_of, tuning):
    trainer, own = trainer_of("rm", **TUNINGS[tuning])
    trainer.model.eval()  # the value head has dropout
    batch = probe_batch(labels=False)
    assert set(own) >= set(batch)

    def forward(inputs):
        _, (_, chosen, rejected) = trainer.compute_loss(trainer.model, dict(inputs), return_outputs=True)
        return spread([chosen[None], rejected[None]], inputs)

    assert_hsa_reaches(trainer.model, batch, HSA, WINDOWS, forward)


def test_a_trainer_that_loses_types_is_found(trainer_of):
    """The control."""
    trainer, _ = trainer_of("kto")
    disable_hsa(trainer.ref_model)
    batch = probe_batch()

    def reference(inputs):
        halves = {**inputs, **{f"kl_{name}": values for name, values in inputs.items()}}
        halves = {name: values for name, values in halves.items() if "semantic_ids" not in name}
        chosen, rejected, _ = trainer.compute_reference_log_probs(
            trainer.model, {**halves, "kto_tags": torch.tensor([True, False])}
        )
        return spread([chosen, rejected], inputs)

    with pytest.raises(AssertionError, match="is out of sight, but changing it moves"):
        assert_hsa_reaches(trainer.model, batch, HSA, WINDOWS, reference)
