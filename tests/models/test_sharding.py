"""HSA under fully sharded data parallelism."""

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from hsa_factory import HSAConfig, enable_hsa
from hsa_factory.tiny import build_model


@pytest.fixture
def mesh(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def step(model, ids, types):
    loss = model(input_ids=ids, semantic_ids=types, labels=ids).loss
    loss.backward()
    return loss


@pytest.mark.parametrize("backend", ["dense", "blockwise"])
def test_fully_shard(mesh, backend):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 100, (2, 70), generator=generator)
    types = torch.randint(0, 3, (2, 70), generator=generator)
    model = enable_hsa(build_model("qwen3").train(), HSAConfig(backend=backend, noise_window=5))
    weight = model.model.layers[0].self_attn.q_proj.weight
    expected, gradient = step(model, ids, types), weight.grad.clone()
    assert gradient.abs().max() > 1e-4

    model.zero_grad()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    torch.testing.assert_close(step(model, ids, types), expected)
    weight = model.model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(weight.grad.full_tensor(), gradient)


def test_fully_shard_in_mixed_precision_leaves_the_plan_alone(mesh):
    ids, types = torch.arange(60)[None], torch.arange(60)[None] % 3
    model = enable_hsa(build_model("qwen3").train(), HSAConfig())
    expected = step(model, ids, types)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    assert step(model, ids, types).item() == pytest.approx(expected.item(), rel=0.02)
