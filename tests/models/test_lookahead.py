"""Tokens foreseen: how many, when they fit, and that their plan is the one that would have been made."""

import pytest
import torch

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan
from hsa_factory.attention.layer_rules import EffectiveRules
from hsa_factory.models.cache.key_table import Keys, KeyTable
from hsa_factory.models.lookahead import Lookahead


CONFIG = HSAConfig(noise_window=4)
NOISE = torch.tensor([[2], [2]])


def held(padding=3, length=10):
    """A table of two rows, the first padded left, and the positions of their last tokens."""
    is_real = torch.arange(length).expand(2, -1) >= torch.tensor([[padding], [0]])
    keys = Keys(is_real.long().cumsum(1) - 1, torch.randint(0, 3, (2, length)), is_real)
    table = KeyTable(EffectiveRules.of(CONFIG, None, False), 256)
    table.begin(keys, keys.positions[:, -1] + 1)
    table.commit()
    return {(None, False): table}, keys.positions[:, -1:]


def take_all(ahead, tables):
    for _ in range(ahead.steps - ahead.taken):
        for table in tables.values():
            table.begin_foreseen()
            table.commit()
        ahead.taken += 1


class TestLookahead:
    def test_twice_as_far_each_time(self):
        tables, last = held()
        ahead, steps = None, []
        for _ in range(6):
            ahead = Lookahead(last, NOISE, tables, CONFIG, ahead)
            steps.append(ahead.steps)
            take_all(ahead, tables)
            last = ahead.keys().positions[:, -1:]
        assert steps == [1, 2, 4, 8, 16, 16]
        assert len(tables[None, False]) == 10 + sum(steps)

    def test_one_step_after_another_type_or_an_early_end(self):
        tables, last = held()
        before = Lookahead(last, NOISE, tables, CONFIG, None)
        assert Lookahead(last, NOISE, tables, CONFIG, before).steps == 1
        take_all(before, tables)
        last = before.keys().positions[:, -1:]
        assert Lookahead(last, torch.tensor([[2], [1]]), tables, CONFIG, before).steps == 1
        assert Lookahead(last, NOISE, tables, CONFIG, before).steps == 2

    def test_no_further_than_memory_allows(self, monkeypatch):
        monkeypatch.setattr("hsa_factory.models.lookahead._CELLS", 2 * (10 + 16) * 3)
        tables, last = held()
        ahead, steps = None, []
        for _ in range(3):
            ahead = Lookahead(last, NOISE, tables, CONFIG, ahead)
            ahead.taken = ahead.steps
            steps.append(ahead.steps)
        assert steps == [1, 2, 3]

    def test_what_fits(self):
        tables, last = held()
        ahead = Lookahead(last, NOISE, tables, CONFIG, None)
        assert ahead.fits(NOISE, CONFIG)
        assert not ahead.fits(torch.tensor([[2], [0]]), CONFIG)
        assert not ahead.fits(NOISE, HSAConfig(noise_window=4, backend="dense"))
        with torch.inference_mode():
            assert not ahead.fits(NOISE, CONFIG)
        take_all(ahead, tables)
        assert not ahead.fits(NOISE, CONFIG)

    def test_the_plan_is_that_of_the_keys_held_and_the_new_one(self):
        tables, last = held()
        table = tables[None, False]
        first = Lookahead(last, NOISE, tables, CONFIG, None)
        take_all(first, tables)
        ahead = Lookahead(last + 1, NOISE, tables, CONFIG, first)
        for _ in range(2):
            table.begin_foreseen()
            bias = ahead.plans()[None, False].dense_bias(torch.float32)
            table.commit()
            ahead.taken += 1
            keys = table.keys
            expected = AttentionPlan(
                keys.semantic_ids, CONFIG, keys.is_real, query_length=1, positions=keys.positions.clamp(min=0)
            )
            assert torch.equal(bias, expected.dense_bias(torch.float32))
        assert keys.positions[:, -3:].tolist() == [[7, 8, 9], [10, 11, 12]]
        assert ahead.keys().positions.tolist() == [[8, 9], [11, 12]]

    @pytest.mark.parametrize("taken", [0, 1])
    def test_what_did_not_come_leaves_no_trace(self, taken):
        tables, last = held()
        before, table = Lookahead(last, NOISE, tables, CONFIG, None), tables[None, False]
        take_all(before, tables)
        Lookahead(last + 1, NOISE, tables, CONFIG, before)
        for _ in range(taken):
            table.begin_foreseen()
            table.commit()
        new = Keys(last + 2 + taken, torch.zeros_like(NOISE), torch.ones_like(NOISE, dtype=torch.bool))
        table.begin(new, new.positions[:, -1] + 1)
        table.commit()
        assert len(table) == table.keys.positions.shape[1] == 12 + taken
        assert table.keys.semantic_ids[:, 10:].tolist() == [[2] * (1 + taken) + [0]] * 2
