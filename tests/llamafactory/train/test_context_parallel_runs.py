"""LLaMA-Factory on processes that share rows: what one process logs, whatever the data look like."""

import json
import multiprocessing
import socket
from pathlib import Path

import pytest
from forked import finish, start

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.llamafactory import integrate, launch
from hsa_factory.training_file import read_training_file
from hsa_factory.user_errors import UserError


pytestmark = pytest.mark.slow

HSA = HSAConfig(noise_window=5)
EXAMPLE = Path(__file__).parents[3] / "examples" / "scaling" / "context_parallel.yaml"
LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"}
ACCUMULATED = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}


def conversations(lf, number=7):
    samples = []
    for k in range(number):
        kinds = ["GLOBAL", "NOISE", "NOISE", "LANDMARK", "NOISE", "NOISE"][: 6 - 2 * (k % 2)]
        messages = lf.dialogue(kinds, words=5 + 3 * k, first_mark=6 * (k % 6))
        messages[-1]["weight"] = [1, 0.25, 3][k % 3]
        if k % 2:
            messages[-1]["content"] += "<|feedback|>" + messages[0]["content"]
        samples.append(messages)
    return samples


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run(args, ranks):
    from llamafactory.train.tuner import run_exp

    multiprocessing.set_start_method("fork", force=True)  # of a stream's workers, as in a process of its own
    with integrate(HSA, FeedbackConfig(), context_parallel=ranks):
        run_exp(args)
    return 0


def logged(args, directory, world, ranks):
    """Run on a world of processes; return what was logged, and the report."""
    args = {**args, "output_dir": str(directory)}
    if world > 1:
        args["ddp_backend"] = "gloo"
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    children = []
    for rank in range(world):
        variables = {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
        output = directory.with_suffix(f".{rank}.txt")
        children.append(start(run, args, ranks, output=output, environment=variables))
    codes = finish(*children)
    texts = [path.read_text()[-4000:] for path in sorted(directory.parent.glob(f"{directory.name}.*.txt"))]
    assert codes == [0] * world, "\n".join(texts)
    history = json.loads((directory / "trainer_state.json").read_text("utf-8"))["log_history"]
    return history, json.loads((directory / "hsa_report.json").read_text("utf-8"))


def same(actual, expected, tolerance):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        for name in {"loss", "eval_loss", "grad_norm", "epoch", "step", "num_input_tokens_seen"} & other.keys():
            assert one[name] == pytest.approx(other[name], rel=tolerance), (name, one, other)


@pytest.fixture
def text(lf, tmp_path):
    data = lf.write_data(tmp_path / "data", data=conversations(lf))
    return lf.args(data, "data", template="qwen3_nothink", **ACCUMULATED)


@pytest.fixture
def example(text):
    """The example's options, with a model and data that are there."""
    example = read_training_file(EXAMPLE, ["bf16=false", "lora_rank=4"])
    assert (example.hsa, example.context_parallel) == (HSAConfig(noise_window=50), 4)
    mine = {name: value for name, value in text.items() if name != "finetuning_type"}
    return {**example.args, **mine}


@pytest.fixture
def pictures(lf, tmp_path):
    samples = lf.with_pictures(conversations(lf, 3), tmp_path / "images")
    data = lf.write_data(tmp_path / "data", data=samples)
    return lf.args(data, "data", lf.model_dir("qwen2_5_vl"), template="qwen2_vl")


EVALUATED = {"val_size": 0.3, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2}
PACKED = {"packing": True, "neat_packing": True, "cutoff_len": 200}


EPOCHS = {"max_steps": None, "num_train_epochs": 2}
STREAMED = {"streaming": True, "buffer_size": 4, "accelerator_config": {"dispatch_batches": False}, "bf16": True}


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("text", {**PACKED, **EVALUATED, "include_num_input_tokens_seen": "all"}, 2e-5),
        pytest.param("text", {**EVALUATED, **EPOCHS}, 2e-5, marks=pytest.mark.long),
        pytest.param("text", {**LORA, **PACKED, **EPOCHS}, 2e-5, marks=pytest.mark.long),
        pytest.param("example", {}, 2e-5, marks=pytest.mark.long),
        pytest.param("text", STREAMED, 2e-2, marks=pytest.mark.long),
        pytest.param("pictures", {}, 2e-5, marks=pytest.mark.long),
    ],
    ids=["packed and evaluated", "evaluated", "packed", "example", "streamed", "pictures"],
)
def test_as_one_process(request, tmp_path, kind, options, tolerance):
    args = {name: value for name, value in {**request.getfixturevalue(kind), **options}.items() if value is not None}
    expected, plain_report = logged(args, tmp_path / "one", 1, 1)
    actual, report = logged(args, tmp_path / "two", 2, 2)
    same(actual, expected, tolerance)
    moved = report.pop("context_parallel")
    assert report == plain_report and not (tmp_path / "two" / "hsa_config.json").read_text().count("context")
    first, second = moved["by_rank"]
    assert moved["ranks"] == 2 and first["rows_sent"] == second["rows_received"] > 0 == second["rows_sent"]
    assert second["rows_received"] < second["rows_all_gather"]


def test_what_cannot_be(lf, text, tmp_path):
    for option, value in (("moe_aux_loss_coef", 0.1), ("compute_accuracy", True), ("neftune_noise_alpha", 5)):
        with (
            pytest.raises(ValueError, match=f"`{option}` cannot be combined with"),
            integrate(HSA, context_parallel=2),
        ):
            lf.train({**text, option: value})
    with pytest.raises(ValueError, match="multiple of 2.*this run has 1"):
        run(text, 2)
    with pytest.raises(ValueError, match="this run has no HSA"), integrate(None, FeedbackConfig(), context_parallel=2):
        lf.train(text)
    for wrong in (0, -1, "2", True):
        with (
            pytest.raises(ValueError, match="context_parallel = .* is not allowed"),
            integrate(HSA, context_parallel=wrong),
        ):
            pass


def test_said_before_processes_are_started(monkeypatch, tmp_path):
    for name, value in (("FORCE_TORCHRUN", "1"), ("NNODES", "2"), ("NPROC_PER_NODE", "2")):
        monkeypatch.setenv(name, value)
    file = tmp_path / "train.yaml"
    file.write_text("hsa: {context_parallel: 3}\n")
    with pytest.raises(ValueError, match="multiple of 3.*this run has 4"):
        launch.train(str(file), [])


def test_the_option(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("hsa: {context_parallel: 4}\n")
    assert (read_training_file(file).hsa, read_training_file(file).context_parallel) == (True, 4)
    file.write_text("hsa: {context_parallel: 2, noise_window: 5}\n")
    assert (read_training_file(file).hsa, read_training_file(file).context_parallel) == (HSA, 2)
    for wrong in ("0", "-1", "true", "2.5", "two", "'2'"):
        with pytest.raises(UserError, match="context_parallel = .* is not allowed: a whole number"):
            read_training_file(file, [f"hsa.context_parallel={wrong}"])
