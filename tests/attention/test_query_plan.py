"""One query of a plan is what a plan for that query alone would be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, run_attention
from hsa_factory.attention.query_plan import QueryPlan


windows = st.one_of(st.none(), st.integers(0, 12))
pairs = st.tuples(st.integers(0, 2), st.integers(0, 2))


class TestBias:
    @settings(deadline=None, max_examples=80)
    @given(
        st.lists(st.lists(st.integers(0, 2), min_size=24, max_size=24), min_size=1, max_size=3),
        st.integers(1, 8),
        st.integers(0, 16),
        st.builds(HSAConfig, noise_window=windows, landmark_window=windows, hide=st.lists(pairs, max_size=4)),
        st.integers(1, 12) | st.none(),
        st.booleans(),
    )
    def test_of_the_query_alone(self, types, queries, padding, config, sliding, neutral):
        """Rows with gaps between their keys, the first of them padded left."""
        types = torch.tensor(types)
        mask = torch.ones_like(types)
        mask[0, : min(padding, 24 - queries)] = 0
        positions = 3 * torch.arange(24).expand_as(types)
        whole = AttentionPlan(types, config, mask, query_length=queries, positions=positions)
        for index in range(queries):
            plan, length = QueryPlan(whole, index), 24 - queries + index + 1
            cut = (tensor[:, :length] for tensor in (types, mask, positions))
            types_cut, mask_cut, positions_cut = cut
            alone = AttentionPlan(types_cut, config, mask_cut, query_length=1, positions=positions_cut)
            bias = alone.dense_bias(torch.float32, sliding, neutral)
            assert torch.equal(plan.dense_bias(torch.float32, sliding, neutral), bias)
            assert (plan.key_length, plan.query_length, plan.is_padding) == (length, 1, None)


class TestAttention:
    @pytest.mark.parametrize("backend", ["auto", "dense", "reference", "blockwise"])
    @pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
    def test_of_the_query_alone(self, backend, heads):
        generator = torch.Generator().manual_seed(0)
        types = torch.randint(0, 3, (2, 40), generator=generator)
        mask = torch.ones_like(types)
        mask[1, :9] = 0
        whole = AttentionPlan(types, HSAConfig(noise_window=6), mask, query_length=5)
        query = torch.randn(2, heads[0], 5, 8, generator=generator)
        key, value = (torch.randn(2, heads[1], 40, 8, generator=generator) for _ in range(2))
        expected = run_attention(query, key, value, whole, "reference")[0]
        for index in range(5):
            keys, values = key[:, :, : 36 + index], value[:, :, : 36 + index]
            plan, one = QueryPlan(whole, index), query[:, :, index : index + 1]
            plan.check(one, keys)
            actual = run_attention(one, keys, values, plan, backend)[0]
            assert actual.shape == one.shape
            assert (actual - expected[:, :, index : index + 1]).abs().max() < 1e-5
