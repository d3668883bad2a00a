"""LLaMA-Factory on processes that share rows: what one process logs, whatever the data look like."""

import json
import socket

import pytest
from forked import finish, start

from hsa_factory import HSAConfig
from hsa_factory.llamafactory import integrate
from hsa_factory.training_file import read_training_file
from hsa_factory.user_errors import UserError


pytestmark = pytest.mark.slow

HSA = HSAConfig(noise_window=5)
LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"}
ACCUMULATED = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}


def conversations(lf, number=7):
    samples = []
    for k in range(number):
        kinds = ["GLOBAL", "NOISE", "NOISE", "LANDMARK", "NOISE", "NOISE"][: 6 - 2 * (k % 2)]
        messages = lf.dialogue(kinds, words=5 + 3 * k, first_mark=6 * (k % 6))
        samples.append(messages)
    return samples


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run(args, ranks):
    from llamafactory.train.tuner import run_exp

    with integrate(HSA, context_parallel=ranks):
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


def same(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        for name in {"loss", "eval_loss", "grad_norm", "epoch", "step"} & other.keys():
            assert one[name] == pytest.approx(other[name], rel=2e-5), (name, one, other)


@pytest.fixture
def text(lf, tmp_path):
    return lf.args(
        lf.write_data(tmp_path / "data", data=conversations(lf)), "data", template="qwen3_nothink", **ACCUMULATED
    )


@pytest.fixture
def pictures(lf, tmp_path):
    paths = lf.images(tmp_path / "images", [(56, 56), (84, 56), (56, 84)])
    samples = []
    for messages, path in zip(conversations(lf), paths):
        messages[0]["content"] = "<image>" + messages[0]["content"]
        samples.append({"messages": messages, "images": [path]})
    data = lf.write_data(tmp_path / "data", data=samples)
    return lf.args(data, "data", lf.model_dir("qwen2_5_vl"), template="qwen2_vl")


EVALUATED = {"val_size": 0.3, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2}
PACKED = {"packing": True, "neat_packing": True, "cutoff_len": 200}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("text", {**EVALUATED, "max_steps": None, "num_train_epochs": 2}),
        ("text", {**LORA, **PACKED}),
        pytest.param("pictures", {}, marks=pytest.mark.long),
    ],
    ids=["evaluated", "packed", "pictures"],
)
def test_as_one_process(request, tmp_path, kind, options):
    args = {name: value for name, value in {**request.getfixturevalue(kind), **options}.items() if value is not None}
    expected, plain_report = logged(args, tmp_path / "one", 1, 1)
    actual, report = logged(args, tmp_path / "two", 2, 2)
    same(actual, expected)
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


def test_the_option(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("hsa: {context_parallel: 4}\n")
    assert (read_training_file(file).hsa, read_training_file(file).context_parallel) == (True, 4)
    file.write_text("hsa: {context_parallel: 2, noise_window: 5}\n")
    assert (read_training_file(file).hsa, read_training_file(file).context_parallel) == (HSA, 2)
    for wrong in ("0", "true", "2.5", "two"):
        with pytest.raises(UserError, match="context_parallel = .* is not allowed: a whole number"):
            read_training_file(file, [f"hsa.context_parallel={wrong}"])
