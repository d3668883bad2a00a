"""The last token that sees a key."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules
from hsa_factory.attention.last_seen import last_seen


@settings(max_examples=80)
@given(st.data())
def test_is_the_last_query_of_the_dense_bias(data):
    length = data.draw(st.integers(1, 30))
    numbers = lambda low, high: torch.tensor(
        data.draw(st.lists(st.lists(st.integers(low, high), min_size=length, max_size=length), min_size=2, max_size=2))
    )
    limit = lambda: data.draw(st.sampled_from((None, 0, 1, 7)))
    config = HSAConfig(
        **{f"{kind}_{what}": limit() for kind in ("global", "landmark", "noise") for what in ("window", "turns")}
    )
    types, documents, turns = numbers(0, 2), numbers(0, 3), numbers(0, 1).cumsum(1)
    rules = LayerRules.of(config, data.draw(st.sampled_from((None, 1, 5))))
    plan = AttentionPlan.from_inputs(types, documents, turn_ids=turns)
    is_seen = plan.dense_bias(torch.float32, rules)[:, 0] > -torch.inf
    places = torch.where(is_seen, plan.positions[:, :, None], -1).amax(dim=1)
    expected = places.masked_fill(documents == 0, -1)
    assert torch.equal(plan.last_seen(rules), expected)
    assert torch.equal(plan.last_seen(rules), last_seen(types, documents, plan.positions, plan.turns(rules), rules))


def test_missing_keys():
    """A turn's last key may be missing; then the last one that is there counts."""
    positions = torch.tensor([[0, 2, 3, 9, 10, 20]])
    plan = AttentionPlan.from_inputs(
        torch.tensor([[2, 2, 2, 2, 0, 2]]), positions=positions, turn_ids=torch.tensor([[0, 0, 1, 1, 3, 3]])
    )
    rules = LayerRules.of(HSAConfig(noise_turns=1))
    assert plan.last_seen(rules).tolist() == [[9, 9, 9, 9, 20, 20]]


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_nothing(shape):
    empty = torch.zeros(shape, dtype=torch.long)
    rules = LayerRules.of(HSAConfig(noise_turns=1))
    assert last_seen(empty, empty, empty, empty, rules).shape == shape


def test_nothing_quadratic():
    length = 200_000
    types = torch.full((1, length), 2)
    turns = torch.arange(length)[None] // 400
    plan = AttentionPlan.from_inputs(types, turn_ids=turns)
    found = plan.last_seen(LayerRules.of(HSAConfig(noise_turns=1)))
    assert torch.equal(found[0], torch.clamp((turns[0] + 2) * 400, max=length) - 1)
