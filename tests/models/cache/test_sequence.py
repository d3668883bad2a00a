"""All tokens seen: in pieces, foreseen or not, they read as one sequence."""

import torch

from hsa_factory import HSAConfig
from hsa_factory.models.cache.key_table import Keys
from hsa_factory.models.cache.sequence import SeenTokens
from hsa_factory.models.lookahead import Lookahead


def keys(start, types):
    types = torch.tensor([types, types])
    return Keys(start + torch.arange(types.shape[1]).expand_as(types), types, torch.ones_like(types, dtype=torch.bool))


def foreseen(seen, steps=2):
    """A lookahead of two tokens, as if one of one token had come before."""
    types, before = torch.tensor([[1], [1]]), None
    for _ in range(steps):
        before = Lookahead(seen.last_positions, types, {}, HSAConfig(), before)
        before.taken = before.steps
    before.taken = 0
    return before


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
        seen.retype(torch.tensor([[2, 2, 2], [0, 0, 0]]))
        seen.change(lambda tensor: tensor[1:, :2])
        assert (len(seen), seen.rows, seen.keys.semantic_ids.tolist()) == (2, 1, [[0, 0]])

    def test_of_what_is_foreseen_only_what_came(self):
        seen = SeenTokens()
        seen.append(keys(0, [0, 2]))
        seen.ahead = foreseen(seen)
        assert seen.ahead.steps == 2 and len(seen) == 2
        seen.ahead.taken += 1
        assert len(seen) == 3 and seen.ahead is not None
        assert seen.last_positions.tolist() == [[2], [2]]
        assert seen.ahead is None and seen.keys.semantic_ids.tolist() == [[0, 2, 1]] * 2

    def test_a_change_ends_it(self):
        seen = SeenTokens()
        seen.append(keys(0, [0, 2]))
        seen.ahead = foreseen(seen)
        seen.ahead.taken += 2
        seen.change(lambda tensor: tensor[:, :3])
        assert len(seen) == 3 and seen.ahead is None
        seen.append(keys(3, [2]))
        assert seen.keys.semantic_ids.tolist() == [[0, 2, 1, 2]] * 2
