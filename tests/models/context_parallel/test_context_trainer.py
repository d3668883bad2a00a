"""transformers' Trainer with rows that processes share: the numbers of one process."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked import finish, start
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.training import hsa_trainer


def rows(number, seed):
    """Rows of different lengths, some tokens of them trained, with weights."""
    generator = torch.Generator().manual_seed(seed)
    data = []
    for length in torch.randint(3, 40, (number,), generator=generator).tolist():
        ids = torch.randint(1, 1000, (length,), generator=generator)
        labels = torch.where(torch.rand(length, generator=generator) < 0.6, ids, -100)
        labels[-1] = ids[-1]
        kinds = torch.randint(0, 3, (length,), generator=generator)
        data.append({"input_ids": ids, "labels": labels, "semantic_ids": kinds})
    return data


def collate(batch):
    fill = {"input_ids": 0, "labels": -100, "semantic_ids": 2, "loss_weights": 0.0}
    columns = {
        name: torch.nn.utils.rnn.pad_sequence([row[name] for row in batch], batch_first=True, padding_value=fill[name])
        for name in batch[0]
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in batch])
    mask = (torch.arange(columns["input_ids"].shape[1]) < lengths[:, None]).long()
    return columns | {"attention_mask": mask}


def train(directory, ranks, resume, **options):
    """Train and write down what was logged and what became of the weights; `ranks` of this world share a row."""
    torch.set_num_threads(1)
    args = TrainingArguments(
        directory, use_cpu=True, ddp_backend="gloo" if "RANK" in os.environ else None, report_to=[], logging_steps=1, save_steps=2, learning_rate=1e-2,
        per_device_train_batch_size=2, per_device_eval_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=3,
        eval_strategy="steps", eval_steps=2, max_grad_norm=0.5, optim="sgd", disable_tqdm=True, save_only_model=False,
    )  # fmt: skip
    model = tiny.build_model("qwen3")
    if options.pop("lora", False):
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    data, seen = rows(7, 0), rows(5, 1)
    if options.pop("weighted", False):
        for row in (*data, *seen):
            row["loss_weights"] = torch.arange(len(row["input_ids"])) % 3 / 2
    group = dist.new_subgroups(group_size=ranks)[0] if ranks > 1 else None
    enable_hsa(model, HSAConfig(noise_window=5), context_parallel=group)
    trainer = hsa_trainer(Trainer)(model, args, data_collator=collate, train_dataset=data, eval_dataset=seen)
    trainer.train(resume_from_checkpoint=resume)
    if int(os.environ.get("RANK", 0)) == 0:
        weights = {name: p.detach().double().norm().item() for name, p in model.named_parameters() if p.requires_grad}
        Path(directory, "result.json").write_text(json.dumps([trainer.state.log_history, weights]))
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run(directory, world, ranks, resume=None, **options):
    directory.mkdir(exist_ok=True)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    children = []
    for rank in range(world):
        variables = {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
        output = directory / f"{rank}.txt"
        children.append(start(run_child, str(directory), ranks, resume, options, output=output, environment=variables))
    codes = finish(*children)
    texts = [path.read_text()[-3000:] for path in directory.glob("*.txt")]
    assert codes == [0] * world, "\n".join(texts)
    return json.loads((directory / "result.json").read_text())


def run_child(directory, ranks, resume, options):
    return train(directory, ranks, resume, **options)


def same(actual, expected):
    for one, other in zip(actual[0], expected[0], strict=True):
        for name in {"loss", "eval_loss", "grad_norm", "epoch", "step"} & other.keys():
            assert one[name] == pytest.approx(other[name], rel=1e-5), (name, one, other)
    assert actual[1] == pytest.approx(expected[1], rel=1e-5)


@pytest.mark.parametrize("options", [{"weighted": True}, {"lora": True}], ids=["weighted", "lora"])
def test_as_one_process(options, tmp_path):
    expected = run(tmp_path / "one", 1, 1, **options)
    same(run(tmp_path / "two", 2, 2, **options), expected)


@pytest.mark.long
def test_groups_of_two_as_two_processes(tmp_path):
    expected = run(tmp_path / "two", 2, 1)
    same(run(tmp_path / "four", 4, 2), expected)


def test_goes_on_with_another_number_of_ranks(tmp_path):
    expected = run(tmp_path / "two", 2, 2)
    resumed = run(tmp_path / "one", 1, 1, resume=str(tmp_path / "two" / "checkpoint-2"))
    same(resumed, expected)
