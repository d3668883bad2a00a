"""The probe for silence on what LLaMA-Factory trains: its model as its trainer calls it, with its own batches."""

import os
import socket

import pytest
import torch
import yaml
from forked import finish, start
from probe import assert_hsa_reaches
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, Trainer

from hsa_factory import HSAConfig, cli, enable_hsa
from hsa_factory.llamafactory.launch import run
from hsa_factory.models.text_model import unwrap
from hsa_factory.training_file import read_training_file


pytestmark = pytest.mark.slow

HSA = HSAConfig(noise_window=3, landmark_decay=0.01)
LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"}
FREEZE = {"finetuning_type": "freeze", "freeze_trainable_layers": 1}
PACKED = {"neat_packing": True, "cutoff_len": 256}
EVALUATED = {"eval_dataset": "data", "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2}


def conversations(lf, number=4):
    """Return conversations in which a long NOISE message is out of the reply's sight, but for its end."""
    kinds = ["GLOBAL", "LANDMARK", "NOISE", "LANDMARK"]
    return [lf.dialogue(kinds, words=18 + 2 * k, first_mark=4 * k) for k in range(number)]


@pytest.fixture
def text(lf, tmp_path):
    """Arguments for a run on text."""
    return lf.args(lf.write_data(tmp_path, data=conversations(lf)), "data", template="qwen3_nothink")


@pytest.fixture
def pictures(lf, tmp_path):
    """Arguments for a run with pictures, which stand in what is never out of sight."""
    data = lf.write_data(tmp_path, data=lf.with_pictures(conversations(lf), tmp_path / "images"))
    return lf.args(data, "data", lf.model_dir("qwen2_5_vl"), template="qwen2_vl")


@pytest.fixture
def probes(monkeypatch):
    """What the trainer computes a loss of is probed first: one entry each."""
    entries, compute_loss = [], Trainer.compute_loss

    def probe_first(trainer, model, inputs, *args, **kwargs):
        assert_hsa_reaches(model, inputs, HSA)
        entries.append((unwrap(model), {"is_training": model.training, **inputs}))
        return compute_loss(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Trainer, "compute_loss", probe_first)
    return entries


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("text", {}),
        ("text", PACKED),
        ("text", LORA | EVALUATED),
        ("text", LORA | PACKED),
        ("text", FREEZE | PACKED),
        ("pictures", {"per_device_train_batch_size": 2}),
        ("pictures", LORA),
    ],
    ids=["full", "full packed", "lora evaluated", "lora packed", "freeze packed", "full pictures", "lora pictures"],
)
def test_what_is_trained(lf, request, probes, kind, more):
    lf.train({**request.getfixturevalue(kind), **more}, HSA)
    trained = [batch for _, batch in probes if batch["is_training"]]
    assert len(trained) == 2 and all(model.is_gradient_checkpointing for model, _ in probes)
    assert (len(probes) > 2) == ("eval_dataset" in more)
    assert all((batch["attention_mask"].max() > 1) == ("neat_packing" in more) for batch in trained)
    assert all(("pixel_values" in batch) == (kind == "pictures") for batch in trained)


@pytest.mark.parametrize("more", [{}, LORA | PACKED], ids=["full", "lora packed"])
def test_it_notices_other_rules(lf, text, probes, more):
    with pytest.raises(AssertionError, match="is out of sight, but changing it moves"):
        lf.train({**text, **more}, HSAConfig(noise_window=30))
    assert not probes


@pytest.mark.parametrize("tuning", [{}, LORA], ids=["full", "lora"])
def test_what_is_resumed(lf, text, probes, tuning):
    args = {**text, **tuning, "save_strategy": "steps", "save_steps": 1}
    lf.train(args, HSA)
    first, _ = probes.pop(0)
    probes.clear()
    lf.train({**args, "max_steps": 3, "save_strategy": "no", "resume_from_checkpoint": True}, True)
    assert len(probes) == 1 and probes[0][0] is not first


def test_what_is_exported(lf, text, tmp_path):
    lf.train({**text, **LORA, "learning_rate": 0.05}, HSA)
    args = {"model_name_or_path": text["model_name_or_path"], "adapter_name_or_path": text["output_dir"]}
    args |= {"template": "qwen3_nothink", "finetuning_type": "lora", "export_dir": str(tmp_path / "merged")}
    assert cli.main(["export", write_file(tmp_path / "export.yaml", args)]) == 0

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    stock = AutoModelForCausalLM.from_pretrained(text["model_name_or_path"])
    assert not torch.equal(*(model.model.layers[0].self_attn.q_proj.weight for model in (merged, stock)))
    prepared = lf.prepare({**text, **PACKED}, HSA)
    batch = lf.collator(prepared, HSA)([dict(prepared.rows()[0])])
    assert_hsa_reaches(enable_hsa(merged).eval(), batch, HSA)


# -- several processes -----------------------------------------------------------------------------------------


def write_file(path, args, **blocks):
    path.write_text(yaml.safe_dump({**args, **blocks}), "utf-8")
    return str(path)


def probe_and_train(directory, file):
    """What torchrun's worker does, but that each batch is probed first."""
    compute_loss = Trainer.compute_loss

    def probe_first(trainer, model, inputs, *args, **kwargs):
        assert isinstance(model, DistributedDataParallel)
        assert_hsa_reaches(model, inputs)
        (directory / f"probed-{os.environ['RANK']}-{trainer.state.global_step}").touch()
        return compute_loss(trainer, model, inputs, *args, **kwargs)

    Trainer.compute_loss = probe_first
    run(read_training_file(file))


def test_what_two_processes_train(text, tmp_path):
    file = write_file(tmp_path / "train.yaml", {**text, **LORA, **PACKED}, hsa={"noise_window": 3})
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    group = {**address, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        start(probe_and_train, tmp_path, file, environment={**group, "RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    assert finish(*processes) == [0, 0]
    assert sorted(path.name for path in tmp_path.glob("probed-*")) == [f"probed-{r}-{s}" for r in "01" for s in "01"]
