"""A row cut among ranks: outputs and gradients are those of the dense reference over the whole row, whatever is cut."""

import random
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from forked import finish, start

from hsa_factory import HSAConfig
from hsa_factory.attention import (
    AttentionPlan,
    LayerRules,
    context_parallel,
    context_parallel_journey,
    reference_attention,
    run_attention,
)
from hsa_factory.attention.context_parallel import ContextPass
from hsa_factory.attention.context_parallel_journey import _Message
from hsa_factory.attention.context_parallel_plan import Route, Row, Slices


RULES = [
    *map(LayerRules.of, (
        HSAConfig(),
        HSAConfig(landmark_window=40, noise_window=3, landmark_decay=0.05),
        HSAConfig(noise_turns=1),
        HSAConfig(noise_turns=0, noise_window=4, landmark_turns=2, landmark_decay=0.0),
        HSAConfig(global_turns=1, global_window=9, noise_window=0),
        HSAConfig(hide=[("GLOBAL", "NOISE"), ("LANDMARK", "LANDMARK")], noise_window=12),
        HSAConfig(noise_window=500),
    )),
    LayerRules.of(HSAConfig(), sliding_window=7),
    LayerRules.of(HSAConfig(noise_turns=2), sliding_window=9),
    LayerRules.plain(),
    LayerRules.plain(5),
    LayerRules.plain(1),
]  # fmt: skip


CASES = 40


@dataclass
class Batch:
    types: torch.Tensor
    documents: torch.Tensor
    turns: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


def make_batch(rng, ranks):
    """Rows of any length, packed, interleaved, padded on either side and in between; NaN stands at padding."""
    length = rng.choice([1, 2, ranks - 1, ranks, ranks + 1, *[rng.randint(1, 150)] * 5]) or 1
    rows, kv_heads, groups, size, value_size = (rng.randint(1, n) for n in (3, 2, 3, 9, 9))
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    weights = torch.tensor([rng.random() + 1e-3 for _ in range(3)])
    types = torch.multinomial(weights, rows * length, replacement=True, generator=generator).view(rows, length)
    many = rng.choice([1, 1, 2, 6])
    documents = torch.randint(1, many + 1, (rows, length), generator=generator)
    layout = rng.choice(["in order", "backwards", "interleaved"])
    if layout != "interleaved":
        documents = documents.sort(dim=1, descending=layout == "backwards").values
    padding = rng.choice(["none", "left", "right", "anywhere", "a row"])
    for row in range(rows):
        number = rng.randrange(length + 1)
        if padding == "left":
            documents[row, :number] = 0
        elif padding == "right":
            documents[row, length - number :] = 0
        elif padding == "anywhere":
            documents[row, torch.rand(length, generator=generator) < 0.3] = 0
        elif padding == "a row" and row == 0:
            documents[row] = 0
    turns = torch.randint(0, 3, (rows, length), generator=generator).cumsum(1)
    q, k, v = (
        torch.randn(rows, heads, length, width, generator=generator)
        for heads, width in ((kv_heads * groups, size), (kv_heads, size), (kv_heads, value_size))
    )
    for tensor in (q, k, v):
        tensor.masked_fill_((documents == 0)[:, None, :, None], float("nan"))
    return Batch(types, documents, turns, q, k, v)


def compare(batch, rules, backend, group):
    """Attend as one rank and as one process; return both sides' output and gradients, those of real tokens."""
    plan = AttentionPlan.from_inputs(batch.types, batch.documents, turn_ids=batch.turns)
    grad = torch.randn(*batch.q.shape[:3], batch.v.shape[3], generator=torch.Generator().manual_seed(1))
    grad = grad.masked_fill((batch.documents == 0)[:, None, :, None], 0)
    whole = [tensor.clone().requires_grad_() for tensor in (batch.q, batch.k, batch.v)]
    expected = reference_attention(*whole, plan, rules)[0]
    expected.backward(grad)

    context = ContextPass(plan, group)
    cut = context.slices.cut
    q, k, v = (cut(tensor, float("nan"), dim=2).requires_grad_() for tensor in (batch.q, batch.k, batch.v))
    actual = context.attend(q, k, v, rules, backend=backend)
    actual.backward(cut(grad, 0, dim=2))
    is_real = cut(batch.documents, 0)[:, None, :, None] != 0
    for one, other in zip((actual, q.grad, k.grad, v.grad), (expected, *(tensor.grad for tensor in whole))):
        assert one.isfinite().all()
        torch.testing.assert_close(one * is_real, cut(other, 0, dim=2).nan_to_num() * is_real, atol=1e-5, rtol=1e-5)
    return context


def exact(rank, ranks, meeting, seeds, backends=("dense", "blockwise", "reference")):
    """In a child: the cases of some seeds, all ranks at once."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    for seed in seeds:
        rng = random.Random(seed)
        batch, rules, backend = make_batch(rng, ranks), rng.choice(RULES), rng.choice(backends)
        try:
            compare(batch, rules, backend, dist.group.WORLD)
        except BaseException as error:
            raise AssertionError(f"seed {seed}, rank {rank} of {ranks}, {backend}, {rules}") from error
    dist.destroy_process_group()
    return 0


@pytest.mark.parametrize("ranks", [3, *(pytest.param(ranks, marks=pytest.mark.long) for ranks in (2, 4))])
def test_any_row_and_rules(ranks, tmp_path):
    output = [tmp_path / f"{rank}.txt" for rank in range(ranks)]
    children = [
        start(
            exact,
            rank,
            ranks,
            str(tmp_path / "meeting"),
            range(ranks * 1000, ranks * 1000 + CASES),
            output=output[rank],
        )
        for rank in range(ranks)
    ]
    codes = finish(*children)
    assert codes == [0] * ranks, "\n".join(path.read_text()[-3000:] for path in output)


def overlapped(rank, ranks, meeting):
    """In a child: what happens in which order, forwards and backwards."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    seen = []

    class Noted(_Message):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            seen.append("sent")

        def wait(self):
            seen.append("waited")
            return super().wait()

    class Attended(torch.autograd.Function):
        @staticmethod
        def forward(ctx, output):
            seen.append("attended")
            return output.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append("attended")
            return grad

    def attend(*arguments, **options):
        return Attended.apply(run_attention(*arguments, **options)[0]), None

    context_parallel_journey._Message, context_parallel.run_attention = Noted, attend
    plan = AttentionPlan.from_inputs(torch.zeros(1, 8, dtype=torch.long))
    q, k, v = (torch.randn(1, heads, 4, 3, requires_grad=True) for heads in (4, 2, 2))
    output = ContextPass(plan, dist.group.WORLD).attend(q, k, v, LayerRules.of(HSAConfig()))
    assert seen == ["sent", "sent", "waited", "attended", "waited", "attended"]
    seen.clear()
    output.sum().backward()
    assert seen == ["attended", "sent", "attended", "sent", "waited", "waited"]
    dist.destroy_process_group()
    return 0


def test_keys_of_the_second_half_travel_while_the_first_attends(tmp_path):
    children = [
        start(overlapped, rank, 2, str(tmp_path / "meeting"), output=tmp_path / f"{rank}.txt") for rank in range(2)
    ]
    codes = finish(*children)
    assert codes == [0, 0], "\n".join((tmp_path / f"{rank}.txt").read_text()[-3000:] for rank in range(2))


@pytest.mark.long
def test_flex_attends_on_a_slice():
    """What its kernel computes, uncompiled on CPU; gradients need a GPU."""
    from hsa_factory.attention.backends.flex import flex_hsa_attention

    for seed in range(30):
        rng = random.Random(seed)
        ranks = rng.choice([2, 3, 4])
        batch, rules = make_batch(rng, ranks), rng.choice(RULES)
        plan = AttentionPlan.from_inputs(batch.types, batch.documents, turn_ids=batch.turns)
        expected = reference_attention(batch.q, batch.k, batch.v, plan, rules)[0]
        for rank in range(ranks):
            slices = Slices(plan.key_length, ranks, rank)
            row = Row(plan, slices)
            route, needed = Route(row, rules), row.needed_by(rank, rules)
            keys = []
            for whole in (batch.k, batch.v):
                joined = whole.new_zeros(*whole.shape[:2], route.keys, whole.shape[3])
                joined[:, :, route.room :] = slices.cut(whole, float("nan"), dim=2)
                before = slices.fill(whole, float("nan"), dim=2)[:, :, : needed.shape[1]]
                for number, places in enumerate(needed):
                    count = int(places.sum())
                    joined[number, :, route.room - count : route.room] = before[number][:, places]
                keys.append(joined)
            with torch.no_grad():
                query = slices.cut(batch.q, float("nan"), dim=2)
                actual = flex_hsa_attention(query, *keys, route.plan, rules, compiled=False)
            is_real = slices.cut(batch.documents, 0)[:, None, :, None] != 0
            torch.testing.assert_close(
                actual * is_real, slices.cut(expected, 0, dim=2) * is_real, atol=1e-5, rtol=1e-5, msg=f"seed {seed}"
            )


def test_only_keys_in_sight_are_moved():
    """By hand: 12 tokens on 3 ranks, memory at 0 and 5, NOISE seen for 2 tokens."""
    types = torch.full((1, 12), 2)
    types[0, 0], types[0, 5] = 0, 1
    plan = AttentionPlan.from_inputs(types)
    rules = LayerRules.of(HSAConfig(noise_window=2))
    needed = [
        Row(plan, Slices(12, 3, rank)).needed_by(rank, rules)[0].nonzero().flatten().tolist() for rank in range(3)
    ]
    assert needed == [[], [0, 2, 3], [0, 5, 6, 7]]
    routes = [Route(Row(plan, Slices(12, 3, rank)), rules) for rank in range(3)]
    assert [route.send_counts for route in routes] == [[0, 3, 1], [0, 0, 3], [0, 0, 0]]
    assert [route.got_counts for route in routes] == [[0, 0, 0], [3, 0, 0], [1, 3, 0]]
