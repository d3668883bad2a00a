"""Context and sequence parallelism are refused by name; tensor parallelism gives what one process gives."""

import os
import socket
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from forked import finish, start
from transformers import AutoModelForCausalLM

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.models.parallelism import check_parallelism


CONTEXT = "cp_size = 2 cannot be combined with HSA yet: context parallelism cuts sequences up"
SEQUENCE = "cannot be combined with HSA yet: sequence parallelism"


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextmanager
def single_process_group(monkeypatch):
    """A group of this process alone."""
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    dist.init_process_group("gloo", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.fixture
def accelerate_state():
    """Accelerate's state, which is forgotten afterwards."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)


# -- asked for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mapping", "accelerate's"])
def test_a_parallelism_config(kind):
    from accelerate import ParallelismConfig

    make = dict if kind == "mapping" else ParallelismConfig
    check_parallelism(make(tp_size=2, dp_shard_size=4))
    with pytest.raises(ValueError, match=f"parallelism_config.{CONTEXT}.*Switch it off"):
        check_parallelism(make(cp_size=2))


def test_the_sequence_parallelism_of_newer_accelerate():
    with pytest.raises(ValueError, match=f"parallelism_config.sp_size = 4 {SEQUENCE}"):
        check_parallelism(SimpleNamespace(cp_size=1, sp_size=4))


def test_transformers_training_arguments(tmp_path):
    from accelerate import ParallelismConfig
    from transformers import TrainingArguments

    arguments = TrainingArguments(tmp_path, parallelism_config=ParallelismConfig(cp_size=2), use_cpu=True)
    with pytest.raises(ValueError, match=CONTEXT):
        check_parallelism(arguments.parallelism_config)
    check_parallelism(TrainingArguments(tmp_path, use_cpu=True).parallelism_config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sequence_parallel_size": 2}, f"sequence_parallel_size = 2 in the DeepSpeed configuration {SEQUENCE}"),
        ({"tensor_parallel": {"autotp_size": 4}}, "tensor_parallel.autotp_size = 4 in the DeepSpeed configuration"),
    ],
)
def test_a_deepspeed_configuration(config, message):
    with pytest.raises(ValueError, match=message):
        check_parallelism(deepspeed_config=config)
    check_parallelism(deepspeed_config={"zero_optimization": {"stage": 3}, "sequence_parallel_size": 1})


@pytest.mark.parametrize("variable", ["PARALLELISM_CONFIG_CP_SIZE", "PARALLELISM_CONFIG_SP_SIZE"])
def test_what_accelerate_launch_says(monkeypatch, variable):
    monkeypatch.setenv(variable, "2")
    check_parallelism()  # accelerate reads it only where the switch is on
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(ValueError, match=f"{variable} = 2 cannot be combined with HSA yet"):
        check_parallelism()
    monkeypatch.setenv(variable, "1")
    check_parallelism()


# -- under way -------------------------------------------------------------------------------------------------


def begin(state_class, **options):
    """Make accelerate's state as `Accelerator` does, but for the processes that a parallelism needs."""
    from accelerate.utils import TorchDynamoPlugin

    return state_class(cpu=True, dynamo_plugin=TorchDynamoPlugin(), _from_accelerator=True, **options)


def test_the_state_of_accelerate(accelerate_state):
    from accelerate import Accelerator, ParallelismConfig

    Accelerator(cpu=True)
    check_parallelism()
    accelerate_state._reset_state(reset_partial_state=True)
    begin(accelerate_state, parallelism_config=ParallelismConfig(cp_size=2))
    with pytest.raises(ValueError, match=CONTEXT):
        check_parallelism()
    accelerate_state._reset_state(reset_partial_state=True)
    check_parallelism()


def test_the_deepspeed_plugin_of_accelerate(accelerate_state):
    plugin = SimpleNamespace(deepspeed_config={"sequence_parallel_size": 2})
    begin(accelerate_state).deepspeed_plugins = {"default": plugin}
    with pytest.raises(ValueError, match=SEQUENCE):
        check_parallelism()


def test_a_sequence_parallel_group_of_deepspeed(monkeypatch):
    """A stand-in for DeepSpeed, in whose own loops accelerate has no part."""

    def not_started():
        raise AssertionError("dist is not initialized")

    groups = SimpleNamespace(mpu=None, mesh_device=None, _get_sequence_parallel_world_size=not_started)
    monkeypatch.setitem(sys.modules, "deepspeed.utils.groups", groups)
    check_parallelism()  # loaded by somebody, and not in use
    groups.mesh_device, groups._get_sequence_parallel_world_size = object(), lambda: 1
    check_parallelism()
    groups._get_sequence_parallel_world_size = lambda: 2
    with pytest.raises(ValueError, match=f"DeepSpeed's sequence parallel group of 2 {SEQUENCE}"):
        check_parallelism()


@pytest.mark.filterwarnings("ignore")
def test_torch_context_parallel(monkeypatch):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import context_parallel

    with single_process_group(monkeypatch):
        mesh = init_device_mesh("cpu", (1,))
        check_parallelism()
        with context_parallel(mesh, buffers=[torch.zeros(1, 8)], buffer_seq_dims=[1]):
            with pytest.raises(ValueError, match="torch's context_parallel cannot be combined with HSA yet"):
                check_parallelism()
        check_parallelism()


def test_it_is_cheap_enough_for_every_forward():
    began = time.perf_counter()
    for _ in range(1000):
        check_parallelism()
    assert time.perf_counter() - began < 1  # a millisecond each; it takes some microseconds


# -- tensor parallelism ----------------------------------------------------------------------------------------

CONFIG = HSAConfig(noise_window=4)


def results(model):
    """Return logits, loss, the gradient of the first query projection, and what is generated."""
    enable_hsa(model, CONFIG)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (2, 24), generator=generator)
    kinds = torch.randint(0, 3, (2, 24), generator=generator)
    output = model(input_ids=ids, semantic_ids=kinds, labels=ids)
    output.loss.backward()
    answer = model.generate(input_ids=ids[:1], semantic_ids=kinds[:1], max_new_tokens=6, do_sample=False)
    gradient = model.model.layers[0].self_attn.q_proj.weight.grad
    gradient = gradient.to_local() if hasattr(gradient, "to_local") else gradient  # a DTensor in newer transformers
    return output.logits.detach(), output.loss.detach(), gradient, answer


def run_shared_out(rank, directory, port):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = AutoModelForCausalLM.from_pretrained(directory, tp_plan="auto").eval()
    torch.save(results(model), directory / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_that_share_out_the_heads(tmp_path):
    """In layers with and without a sliding window."""
    tiny.save_tiny("gemma3_text", tmp_path, ["The robot opens the fridge."])
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    logits, loss, gradient, answer = results(model)
    port = free_port()
    assert finish(*(start(run_shared_out, rank, tmp_path, port) for rank in range(2))) == [0, 0]
    for rank in range(2):
        shared_logits, shared_loss, part, shared_answer = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(shared_logits, logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(shared_loss, loss, atol=1e-5, rtol=0)
        assert part.shape[0] == gradient.shape[0] // 2 and part.abs().max() > 0
        torch.testing.assert_close(part, gradient.chunk(2)[rank], atol=1e-5, rtol=0)
        assert torch.equal(shared_answer, answer)
