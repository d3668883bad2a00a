"""Ranks of a group as children, and what is compared between them and one process."""

import torch
import torch.distributed as dist
from forked import finish, start


def joined(rank, ranks, meeting):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    return dist.group.WORLD


def step(model, **batch):
    model.train()
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def averaged(grads):
    for grad in grads.values():
        dist.all_reduce(grad)
        grad /= dist.get_world_size()
    return grads


def same(actual, expected, tolerance=1e-5):
    loss, grads = actual
    torch.testing.assert_close(loss, expected[0], atol=tolerance, rtol=tolerance)
    assert grads.keys() == expected[1].keys()
    size = max(grad.abs().max() for grad in expected[1].values())
    for name, grad in grads.items():
        error = (grad - expected[1][name]).abs().max() / size
        assert error < tolerance, f"{name}: {error:.1e}"


def on_ranks(ranks, tmp_path, target, *arguments):
    """Run a function on all ranks of a group, and show what those say that fail."""
    outputs = [tmp_path / f"{rank}.txt" for rank in range(ranks)]
    meeting = str(tmp_path / "meeting")
    children = [start(target, rank, ranks, meeting, *arguments, output=outputs[rank]) for rank in range(ranks)]
    codes = finish(*children)
    assert codes == [0] * ranks, "\n".join(path.read_text()[-3000:] for path in outputs)
