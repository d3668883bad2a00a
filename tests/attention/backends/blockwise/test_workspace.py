import pytest
import torch

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules, run_attention
from hsa_factory.attention.backends.blockwise.workspace import WorkspacePool


LIKE = torch.empty(1)
DEFAULTS = LayerRules.of(HSAConfig())


class TestWorkspacePool:
    def test_a_workspace_is_lent_again(self):
        pool = WorkspacePool()
        with pool.lend(LIKE) as work:
            first = work.get("rows", 3, 4)
        with pool.lend(LIKE.bfloat16()) as work:  # half precision is computed in float32
            assert work.get("rows", 2, 6).data_ptr() == first.data_ptr()
            assert work.get("rows", 4, 4).shape == (4, 4)

    def test_two_passes_at_once_get_two(self):
        pool = WorkspacePool()
        with pool.lend(LIKE) as first, pool.lend(LIKE) as second:
            assert first is not second

    def test_another_dtype_gets_another(self):
        pool = WorkspacePool()
        with pool.lend(LIKE) as first:
            pass
        with pool.lend(LIKE.double()) as second:
            assert second.get("rows", 1).dtype == torch.float64
        assert second is not first

    def test_a_failed_pass_gives_nothing_back(self):
        pool = WorkspacePool()
        with pytest.raises(RuntimeError), pool.lend(LIKE) as failed:
            raise RuntimeError
        with pool.lend(LIKE) as work:
            assert work is not failed


def test_a_plan_used_in_inference_mode_can_train():
    plan = AttentionPlan.from_inputs(torch.arange(300)[None] % 3)
    query, key, value = (torch.randn(1, 2, 300, 8) for _ in range(3))
    with torch.inference_mode():
        expected, _ = run_attention(query, key, value, plan, DEFAULTS, "blockwise")
    query.requires_grad_()
    output, _ = run_attention(query, key, value, plan, DEFAULTS, "blockwise")
    output.sum().backward()
    assert torch.equal(output.detach(), expected)
    assert query.grad.isfinite().all()


def test_layers_do_not_disturb_each_other():
    """Two layers share a plan, and so the buffers, before either is differentiated."""
    plan = AttentionPlan.from_inputs(torch.arange(300)[None] % 3)
    layers = [[torch.randn(1, 2, 300, 8, requires_grad=True) for _ in range(3)] for _ in range(2)]
    outputs = [run_attention(*layer, plan, DEFAULTS, "blockwise")[0] for layer in layers]
    for output, layer in zip(outputs, layers):
        alone = AttentionPlan.from_inputs(torch.arange(300)[None] % 3)
        expected = torch.autograd.grad(run_attention(*layer, alone, DEFAULTS, "blockwise")[0].sum(), layer)
        for actual, other in zip(torch.autograd.grad(output.sum(), layer), expected):
            torch.testing.assert_close(actual, other)
