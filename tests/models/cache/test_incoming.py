"""Types of tokens that come without their own, and which are padding."""

import pytest
import torch

from hsa_factory.models.cache.incoming import EndedRows, IncomingTypes, check_types, find_real
from hsa_factory.models.cache.tagger import ConstantTagger, Settled


class Script(ConstantTagger):
    """A tagger that says what it is told to."""

    news, open_from = (), None

    def settled(self):
        return list(self.news)

    def unsettled(self):
        return self.open_from


def expecting(types, tagger=None):
    incoming = IncomingTypes(None)
    incoming.expect(torch.tensor(types), tagger)
    return incoming


class TestOf:
    def test_prompt_then_tagger(self):
        incoming = expecting([[0, 1, 0], [1, 0, 0]], ConstantTagger(2))
        ids = torch.zeros(2, 2, dtype=torch.long)
        assert incoming.of(ids, 0).tolist() == [[0, 1], [1, 0]]
        assert incoming.of(ids, 2).tolist() == [[0, 2], [0, 2]]
        assert incoming.of(ids, 3).tolist() == incoming.of(ids, 9).tolist() == [[2, 2], [2, 2]]

    def test_rows_that_became_more(self):
        incoming = expecting([[0, 1], [1, 0]], None)
        assert incoming.of(torch.zeros(4, 1, 8), 1).tolist() == [[1], [1], [0], [0]]

    def test_nothing_is_known(self):
        with pytest.raises(ValueError, match="semantic_ids are missing"):
            IncomingTypes(None).of(torch.zeros(1, 1, dtype=torch.long), 0)
        with pytest.raises(ValueError, match="semantic_ids are missing"):
            expecting([[0]]).of(torch.zeros(1, 2, dtype=torch.long), 0)
        with pytest.raises(ValueError, match="must be input_ids to be typed, got embeddings"):
            IncomingTypes(ConstantTagger(2)).of(torch.zeros(1, 1, 8), 0)

    def test_forgotten(self):
        incoming = expecting([[1]], ConstantTagger(2))
        incoming.forget()
        assert incoming.of(torch.zeros(1, 1, dtype=torch.long), 0).tolist() == [[2]]


class TestNews:
    def test_without_a_tagger(self):
        incoming = IncomingTypes(None)
        assert incoming.news(9) == ([], 0) and incoming.held_from(torch.tensor([8]), 9) is None

    def test_changes_count_from_the_sequences_first_token(self):
        tagger = Script(2)
        incoming = expecting([[0] * 10], tagger)
        tagger.news = [Settled(0, 1, 4, 1), Settled(0, 4, 5, 2)]
        assert incoming.news(13)[0] == [Settled(0, 11, 13, 1)]  # the last two are not seen yet

    def test_what_is_held_and_what_no_longer_is(self):
        tagger = Script(2)
        incoming = expecting([[0] * 10, [0] * 10], tagger)
        tagger.open_from = [0, 2]
        assert incoming.news(13) == ([], 0)
        last = torch.tensor([12, 9])  # the second row has three padding tokens
        assert incoming.held_from(last, 13).tolist() == [10, 9]
        tagger.open_from = [3, 3]
        assert incoming.news(13) == ([], 3)
        tagger.open_from = None
        assert incoming.news(14) == ([], 0) and incoming.held_from(last, 13) is None


class TestPadding:
    def test_none_is_padding(self):
        tokens = torch.zeros(2, 3, dtype=torch.long)
        assert find_real(tokens, None, 4) is None and find_real(tokens, torch.ones(2, 7), 4) is None

    def test_only_new_tokens_count(self):
        mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
        assert find_real(torch.zeros(2, 2, 8), mask, 3) is None
        mask[1, 4] = 0
        assert find_real(torch.zeros(2, 2, 8), mask, 3).tolist() == [[True, True], [True, False]]

    def test_another_shape(self):
        with pytest.raises(
            ValueError, match=r"shape \(2, 3\), but it must cover \(batch, length\) = \(2, 7\), 4 cached"
        ):
            find_real(torch.zeros(2, 3), torch.ones(2, 3), 4)

    def test_a_packed_row(self):
        with pytest.raises(ValueError, match="packed row"):
            find_real(torch.zeros(1, 2), torch.tensor([[1, 2]]), 0)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_types_that_do_not_exist(wrong):
    types = torch.tensor([[0, 1, 2, 0]])
    assert check_types(types) is types
    types[0, 3] = wrong
    with pytest.raises(ValueError, match=f"semantic_ids holds {wrong}; allowed are 0, 1 and 2"):
        check_types(types)


class TestEndedRows:
    def test_what_comes_after_an_end_is_padding(self):
        """Not the end token itself, nor one of the prompt; in one piece or in several."""
        ids = torch.tensor([[7, 7, 1, 7, 2], [1, 2, 3, 4, 5], [7, 1, 8, 2, 3]])
        wanted = [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
        for sizes in ([5], [1] * 5, [2, 2, 1], [1, 3, 1]):
            rows, seen, found = EndedRows(), 0, []
            rows.expect([7, 8], 2)
            for piece in ids.split(sizes, dim=1):
                real = rows.find_real(piece, None, seen)
                found.append(torch.ones_like(piece) if real is None else real.long())
                seen += piece.shape[1]
            assert torch.cat(found, 1).tolist() == wanted
            assert rows.ended.tolist() == [True, False, True]

    def test_the_mask_holds_too(self):
        rows, mask = EndedRows(), torch.tensor([[True, False], [False, True]])
        rows.expect([7], 0)
        assert rows.find_real(torch.tensor([[7, 7], [7, 7]]), mask, 0).tolist() == [[True, False], [False, False]]
        rows.change(lambda tensor: tensor.repeat_interleave(2, dim=0))
        assert rows.ended.tolist() == [True] * 4
        rows.forget()
        assert rows.ended is None and rows.find_real(torch.tensor([[7], [7]]), None, 5) is None
