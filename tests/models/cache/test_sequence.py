"""All tokens seen: in pieces they read as one sequence, and types change in all tables or in none."""

import pytest
import torch

from hsa_factory import HSAConfig
from hsa_factory.attention import LayerRules
from hsa_factory.models.cache.key_table import Keys, KeyTable
from hsa_factory.models.cache.sequence import SeenTokens, retype
from hsa_factory.models.cache.tagger import Settled


def keys(start, types):
    types = torch.tensor([types, types])
    return Keys(start + torch.arange(types.shape[1]).expand_as(types), types, torch.ones_like(types, dtype=torch.bool))


class TestSeenTokens:
    def test_nothing(self):
        seen = SeenTokens()
        seen.change(lambda tensor: tensor[:0])
        assert len(seen) == seen.rows == 0 and not seen

    def test_pieces(self):
        seen = SeenTokens()
        seen.append(keys(0, [0, 1]))
        seen.append(keys(2, [2]))
        assert (len(seen), seen.rows, seen.last_positions.tolist()) == (3, 2, [[2], [2]])
        assert seen.keys.semantic_ids.tolist() == [[0, 1, 2]] * 2
        seen.retype([Settled(0, 0, 3, 2), Settled(1, 0, 2, 0), Settled(1, 2, 3, 0)])
        seen.change(lambda tensor: tensor[1:, :2])
        assert (len(seen), seen.rows, seen.keys.semantic_ids.tolist()) == (2, 1, [[0, 0]])

    def test_many_pieces(self):
        seen = SeenTokens()
        for number in range(200):
            seen.append(keys(number, [number % 3]))
        assert len(seen) == 200 and seen.keys.positions.tolist() == [list(range(200))] * 2
        assert seen.keys.semantic_ids[0].tolist() == [number % 3 for number in range(200)]

    def test_changes_to_other_types(self):
        seen = SeenTokens()
        assert seen.changes_to(torch.tensor([[0]])) == []
        seen.append(keys(0, [0, 1, 1, 2]))
        wanted = torch.tensor([[0, 1, 1, 2, 0], [2, 2, 1, 0, 0]])
        assert seen.changes_to(wanted) == [Settled(1, 0, 2, 2), Settled(1, 3, 4, 0)]


def test_all_tables_are_asked_for_all_changes_before_any_of_them_changes():
    seen = SeenTokens()
    tables = [KeyTable(LayerRules.of(HSAConfig(noise_window=1), window), 1) for window in (None, 3)]
    new = keys(0, [0, 0, 1, 2, 2])
    seen.append(new)
    for table in tables:
        table.begin(new, has_padding=False)
        table.commit()
    before = [table.keys.semantic_ids.tolist() for table in tables]
    assert len(tables[0]) > len(tables[1])
    with pytest.raises(ValueError, match="Tokens 3 to 4 of row 1 cannot become GLOBAL"):
        retype([Settled(0, 0, 1, 1), Settled(1, 3, 4, 0)], seen, tables)
    assert [table.keys.semantic_ids.tolist() for table in tables] == before
    assert seen.keys.semantic_ids.tolist() == [[0, 0, 1, 2, 2]] * 2

    retype([Settled(0, 0, 1, 1)], seen, tables)
    assert tables[0].keys.semantic_ids[0, 0] == seen.keys.semantic_ids[0, 0] == 1


def test_where_rows_go_on():
    """After the last real token, at whichever position it had; it follows rows that are chosen, repeated and shortened."""
    seen, kinds = SeenTokens(), torch.zeros(2, 3, dtype=torch.long)
    assert seen.next_rope_positions is None
    assert seen.count_on(torch.tensor([[False, True, True]])).tolist() == [[0, 0, 1]]
    left = torch.tensor([[False, True, True], [True, True, True]])
    seen.append(seen.next_keys(kinds, left))  # a model that is given no positions counts padding
    assert seen.next_rope_positions.tolist() == [[3], [3]] and seen.last_positions.tolist() == [[1], [2]]
    right = torch.tensor([[True, False, False], [False, False, False]])
    assert seen.count_on(right).tolist() == [[3, 3, 3], [2, 2, 2]]
    seen.append(seen.next_keys(kinds, right), torch.tensor([[7, 0, 0]]))
    assert seen.next_rope_positions.tolist() == [[8], [3]]
    seen.append(seen.next_keys(kinds[:, :1], None), torch.tensor([[20], [30]]), has_padding=False)
    seen.change(lambda tensor: tensor.flip(0))
    assert seen.next_rope_positions.tolist() == [[31], [21]]
    seen.change(lambda tensor: tensor[:, :-1].repeat_interleave(2, dim=0))
    assert seen.next_rope_positions.tolist() == [[3], [3], [8], [8]]
    seen.change(lambda tensor: tensor[:, :2])
    assert seen.next_rope_positions.tolist() == [[2]] * 4
