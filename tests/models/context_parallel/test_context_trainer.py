"""transformers' Trainer with rows that processes share: the numbers of one process."""

import json
import os
import socket
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
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
        name: torch.nn.utils.rnn.pad_sequence(
            [torch.as_tensor(row[name]) for row in batch], batch_first=True, padding_value=fill[name]
        )
        for name in batch[0]
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in batch])
    mask = (torch.arange(columns["input_ids"].shape[1]) < lengths[:, None]).long()
    return columns | {"attention_mask": mask}


def with_empty_row(batch):
    """Collate; of the last row nothing is left but padding."""
    columns = collate(batch)
    columns["attention_mask"][-1], columns["labels"][-1] = 0, -100
    return columns


def short_rows():
    return [{name: values[: 1 + number % 3] for name, values in row.items()} for number, row in enumerate(rows(7, 2))]


def untrained_rows():
    """Rows of which one is not trained at all, the others at their end, on the last rank's slice."""
    data = rows(7, 0)
    for row in data:
        row["labels"][: len(row["labels"]) // 2] = -100
    data[1]["labels"][:] = -100
    return data


def table_of(data):
    """Return rows as TRL takes them."""
    plain = [{name: values.tolist() for name, values in row.items()} for row in data]
    return datasets.Dataset.from_list(plain)


class Streamed(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(rows(7, 0))


ONCE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
CASES = {
    "lora": {"lora": True},
    "short": {"data": short_rows, "max_steps": 3, **ONCE},
    "untrained": {"data": untrained_rows, "collate": with_empty_row},
    "bfloat16": {"bf16": True, "average_tokens_across_devices": False},
    "accumulated": {"weighted": True, "num_train_epochs": 2, "include_num_input_tokens_seen": "non_padding"},
}
OF_TRL = "of TRL"
OTHERS = {
    "by length": {"train_sampling_strategy": "group_by_length", "dataloader_drop_last": True},
    "one row": {"data": partial(rows, 1, 0), **ONCE},
    "streamed": {"data": Streamed, "max_steps": 3},
    "uneven": {"per_device_eval_batch_size": 3, "eval_rows": 7, "include_num_input_tokens_seen": "all"},
    "own number": {"average_tokens_across_devices": False},
    OF_TRL: {"max_steps": 3, "include_num_input_tokens_seen": "all"},
}
ROUNDED = {"bfloat16": 2e-2}
RESUMED = "accumulated"


def train(directory, ranks, name, resume=None):
    """Train and write down what was logged and what became of the weights; `ranks` of this world share a row."""
    options = {
        "logging_steps": 1, "save_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 1, "eval_strategy": "steps",
        "eval_steps": 2, "max_grad_norm": 0.5, "optim": "sgd", "save_strategy": "steps" if name == RESUMED else "no",
        **(CASES | OTHERS)[name],
    }  # fmt: skip
    has_lora, is_weighted = options.pop("lora", False), options.pop("weighted", False)
    data, seen = options.pop("data", partial(rows, 7, 0))(), rows(options.pop("eval_rows", 5), 1)
    collator = options.pop("collate", collate)
    AcceleratorState._reset_state()  # which keeps the precision of the case before
    GradientState._reset_state()
    backend = "gloo" if "RANK" in os.environ else None
    trainer_class, arguments, processor = Trainer, TrainingArguments, None
    if name == OF_TRL:
        from trl import SFTConfig, SFTTrainer

        trainer_class, processor = SFTTrainer, tiny.build_tokenizer(["a text"])
        data, seen = table_of(data), table_of(seen)
        arguments = partial(SFTConfig, bf16=False, dataset_kwargs={"skip_prepare_dataset": True})
    args = arguments(directory, use_cpu=True, ddp_backend=backend, report_to=[], disable_tqdm=True, **options)
    model = tiny.build_model("qwen3")
    if has_lora:
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    for row in (*data, *seen) if is_weighted else ():
        row["loss_weights"] = torch.arange(len(row["input_ids"])) % 3 / 2
    group = dist.new_subgroups(group_size=ranks)[0] if ranks > 1 else None
    enable_hsa(model, HSAConfig(noise_window=5), context_parallel=group)
    trainer = hsa_trainer(trainer_class)(
        model, args, data_collator=collator, train_dataset=data, eval_dataset=seen, processing_class=processor
    )
    trainer.train(resume_from_checkpoint=resume)
    if ranks > 1 and name == RESUMED:
        check_refused(trainer, seen)
    weights = {name: p.detach().double().norm().item() for name, p in model.named_parameters() if p.requires_grad}
    return trainer.state.log_history, weights


def check_refused(trainer, data):
    with pytest.raises(ValueError, match="Predictions are logits of whole rows"):
        trainer.predict(data)
    with pytest.raises(ValueError, match="`compute_loss_func`"):
        hsa_trainer(Trainer)(trainer.model, trainer.args, eval_dataset=data, compute_loss_func=print)


def train_all(directory, ranks, cases):
    """In a child: train each of some cases, (its name, the checkpoint where it goes on), and write down the results."""
    torch.set_num_threads(1)
    results = [train(f"{directory}/{name}", ranks, name, resume) for name, resume in cases]
    if int(os.environ.get("RANK", 0)) == 0:
        Path(directory, "results.json").write_text(json.dumps(results))
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run(directory, world, ranks, cases):
    """Run cases on a world of processes; return the results in their order."""
    directory.mkdir()
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    children = []
    for rank in range(world):
        variables = {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
        output = directory / f"{rank}.txt"
        children.append(start(train_all, str(directory), ranks, cases, output=output, environment=variables))
    codes = finish(*children)
    texts = [path.read_text()[-3000:] for path in directory.glob("*.txt")]
    assert codes == [0] * world, "\n".join(texts)
    return json.loads((directory / "results.json").read_text())


def same(actual, expected, tolerance=1e-5):
    for one, other in zip(actual[0], expected[0], strict=True):
        for name in {
            "loss",
            "eval_loss",
            "grad_norm",
            "epoch",
            "step",
            "num_input_tokens_seen",
            "total_flos",
        } & other.keys():
            assert one[name] == pytest.approx(other[name], rel=tolerance, nan_ok=True), (name, one, other)
    assert actual[1] == pytest.approx(expected[1], rel=tolerance)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every case on one process, then on two that share rows, where one goes on from the checkpoint of one process."""
    directory, fresh = tmp_path_factory.mktemp("runs"), [(name, None) for name in CASES]
    alone = run(directory / "one", 1, 1, fresh)
    resumed = (RESUMED, str(directory / "one" / RESUMED / "checkpoint-2"))
    together = run(directory / "two", 2, 2, [*fresh, resumed])
    return dict(zip([*CASES, "resumed"], zip(together, [*alone, alone[list(CASES).index(RESUMED)]]), strict=True))


@pytest.mark.parametrize("name", [*CASES, "resumed"])
def test_as_one_process(name, results):
    same(*results[name], tolerance=ROUNDED.get(name, 1e-5))


@pytest.mark.long
def test_others_as_one_process(tmp_path):
    pytest.importorskip("trl")
    cases = [(name, None) for name in OTHERS]
    alone, together = run(tmp_path / "one", 1, 1, cases), run(tmp_path / "two", 2, 2, cases)
    for one, other in zip(together, alone, strict=True):
        same(one, other)
    assert "entropy" in alone[-1][0][0] and "entropy" not in together[-1][0][0]


@pytest.mark.long
def test_groups_of_two_as_two_processes(tmp_path):
    names = ["lora", "by length", "bfloat16", "accumulated", "uneven", "own number"]
    cases = [(name, None) for name in names]
    alone, together = run(tmp_path / "two", 2, 1, cases), run(tmp_path / "four", 4, 2, cases)
    for name, one, other in zip(names, together, alone, strict=True):
        same(one, other, ROUNDED.get(name, 1e-5))
