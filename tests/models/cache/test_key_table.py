"""Which keys may go: the rule, and how many may wait."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules
from hsa_factory.models.cache.key_table import Keys, KeyTable, find_visible


def keys_of(types, padding=0):
    types = torch.tensor([types])
    is_real = torch.arange(types.shape[1])[None] >= padding
    return Keys(is_real.long().cumsum(1) - 1, types, is_real)


def tokens_of(positions, kind):
    places = torch.tensor([positions])
    return Keys(places, torch.full_like(places, kind), torch.ones_like(places, dtype=torch.bool))


windows = st.one_of(st.none(), st.integers(0, 12))
hides = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=9)


class TestTheRule:
    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.integers(0, 2), min_size=1, max_size=30), windows, windows, windows, hides, windows, st.data())
    def test_what_goes_no_later_query_would_see(self, types, noise, landmark, everything, hide, sliding, data):
        """Against the dense bias of the whole row, whatever types the tokens to come have."""
        config = HSAConfig(noise_window=noise, landmark_window=landmark, global_window=everything, hide=hide)
        later = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=20))
        sliding = sliding and sliding + 1
        rules = LayerRules.of(config, sliding)
        visible = find_visible(keys_of(types), torch.tensor([len(types)]), rules)
        plan = AttentionPlan.from_inputs(torch.tensor([types + later]))
        seen = plan.dense_bias(torch.float32, rules)[0, 0, len(types) :, : len(types)].isfinite().any(dim=0)
        assert not (seen & ~visible[0]).any()

    @given(st.lists(st.integers(0, 2), min_size=1, max_size=30), windows, windows, windows)
    def test_what_stays_the_next_query_sees(self, types, noise, landmark, everything):
        config = HSAConfig(noise_window=noise, landmark_window=landmark, global_window=everything)
        rules = LayerRules.of(config)
        visible = find_visible(keys_of(types), torch.tensor([len(types)]), rules)
        plan = AttentionPlan.from_inputs(torch.tensor([[*types, 0]]))
        assert visible[0].tolist() == plan.dense_bias(torch.float32, rules)[0, 0, -1, :-1].isfinite().tolist()

    def test_padding_goes(self):
        rules = LayerRules.of(HSAConfig())
        assert find_visible(keys_of([0, 0, 0], padding=2), torch.tensor([1]), rules).tolist() == [[False, False, True]]


class TestTable:
    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=40), st.integers(1, 12))
    def test_visible_keys_stay_and_few_others_wait(self, forwards, max_waiting):
        rules = LayerRules.of(HSAConfig(noise_window=3, landmark_window=7))
        table, all_types = KeyTable(rules, max_waiting), []
        for types in forwards:
            start = len(all_types)
            all_types += types
            new = keys_of(types)
            table.begin(new._replace(positions=new.positions + start))
            table.commit()
            places = table.keys.positions[0].tolist()
            assert places == sorted(set(places))
            assert table.keys.semantic_ids[0].tolist() == [all_types[place] for place in places]
            whole = keys_of(all_types)
            visible = find_visible(whole, torch.tensor([len(all_types)]), rules)[0].nonzero().flatten().tolist()
            assert set(visible) <= set(places)
            assert len(places) - len(visible) < max_waiting

    def test_rows_end_together(self):
        table = KeyTable(LayerRules.of(HSAConfig(noise_window=1)), 1)
        types = torch.tensor([[0, 2, 2, 2, 2], [0, 0, 0, 2, 2]])
        plan = table.begin(Keys(torch.arange(5).expand(2, 5), types, torch.ones(2, 5, dtype=torch.bool)))
        assert len(table) == 0 and plan.positions.shape == (2, 5)
        table.commit()
        assert table.keys.is_real.tolist() == [[False, False, True, True], [True] * 4]
        assert table.keys.positions[0, 2:].tolist() == [0, 4] and table.keys.positions[1].tolist() == [0, 1, 2, 4]

    def test_held_keys_stay(self):
        rules = LayerRules.of(HSAConfig(noise_window=1))
        table = KeyTable(rules, 1)
        table.begin(keys_of([2] * 6), held_from=torch.tensor([2]))
        table.commit()
        assert table.keys.positions.tolist() == [[2, 3, 4, 5]]
        new = keys_of([0])
        table.begin(new._replace(positions=new.positions + 6), held_from=torch.tensor([7]), released=5)
        table.commit()
        assert table.keys.positions.tolist() == [[6]]

    @pytest.mark.parametrize(("kind", "possible"), [(0, False), (1, False), (2, True)])
    def test_retyping_what_is_gone(self, kind, possible):
        rules = LayerRules.of(HSAConfig(noise_window=1))
        table = KeyTable(rules, 1)
        table.begin(keys_of([2] * 6))
        table.commit()
        assert table.can_retype(0, tokens_of([1, 2], kind), torch.tensor(6), None) is possible
        assert table.can_retype(0, tokens_of([5], kind), torch.tensor(6), None) is True
        table.retype(0, torch.tensor([5]), kind)
        assert table.keys.semantic_ids.tolist() == [[kind]]
