"""Typed token ids: whatever is done to the list, each id keeps what it carries."""

import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsa_factory import SemanticType
from hsa_factory.typed.ids import (
    TypedTokenId,
    count_plain,
    fill_types,
    mark_untrained,
    read_off,
    semantic_ids_of,
    tag_id,
    tags_of,
    type_token_ids,
)


facts = st.tuples(st.integers(0, 2), st.sampled_from(["", "weight", "before marker"]))
rows = st.lists(st.tuples(st.integers(0, 2**31), facts), max_size=20)
cuts = st.slices(25)


def build(row):
    return [type_token_ids([token], *carried)[0] for token, carried in row]


def read(tokens):
    return [(int(token), (token.semantic_type, token.untrained)) for token in tokens]


class TestOneId:
    def test_equals_the_plain_id_in_every_other_respect(self):
        token = type_token_ids([151643], 1, "weight")[0]
        assert isinstance(token, TypedTokenId) and isinstance(token, int)
        assert token == 151643 and hash(token) == hash(151643)
        assert json.dumps([token]) == "[151643]" and f"{token}" == repr(token) == "151643"
        assert (token.semantic_type, token.untrained) == (1, "weight")
        assert not token.trained and type_token_ids([1], 1)[0].trained
        assert not hasattr(token, "__dict__")

    @given(facts, st.integers(0, 2**31))
    def test_pickle_and_copy(self, carried, token_id):
        token = type_token_ids([token_id], *carried)[0]
        expected = [(token_id, carried)] * 2
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert read(pickle.loads(pickle.dumps([token, token], protocol))) == expected
        assert read(copy.deepcopy([token, token])) == read(copy.copy([token, token])) == expected

    @given(facts, st.integers(0, 2**31))
    def test_a_tag_survives_pickle_and_copy(self, carried, token_id):
        token = tag_id(type_token_ids([token_id], *carried)[0], ("tag", 7))
        copies = [pickle.loads(pickle.dumps(token, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
        copies += [copy.deepcopy(token), copy.copy(token)]
        assert read(copies) == [(token_id, carried)] * len(copies)
        assert tags_of(copies) == [("tag", 7)] * len(copies)

    def test_typing_again_replaces(self):
        once = type_token_ids([5, 6], 0, "weight")
        assert read(type_token_ids(once, SemanticType.NOISE)) == [(5, (2, "")), (6, (2, ""))]
        assert read(once) == [(5, (0, "weight")), (6, (0, "weight"))]

    def test_arithmetic_makes_plain_ints(self):
        assert type(type_token_ids([5], 0)[0] + 1) is int


class TestLists:
    @given(rows, rows, cuts, cuts, st.integers(0, 3))
    def test_slices_reversals_joins_and_repeats_keep_ids_and_types_aligned(self, first, second, cut, other, times):
        def shuffle(left, right):
            return (left[cut] + right[::-1] + left[other][::-1] + right[cut] * times)[other]

        tokens = shuffle(build(first), build(second))
        expected = shuffle(first, second)
        assert read(tokens) == expected
        semantic_ids, loss_mask = read_off(tokens)
        assert list(semantic_ids) == [semantic_type for _, (semantic_type, _) in expected]
        assert list(loss_mask) == [int(not untrained) for _, (_, untrained) in expected]
        assert list(semantic_ids_of(tokens)) == list(semantic_ids)

    @given(rows)
    def test_marking_untrained_changes_nothing_else(self, row):
        marked = mark_untrained(build(row), "failed")
        assert read(marked) == [(token, (kind, "failed")) for token, (kind, _) in row]
        tagged = mark_untrained([tag_id(token, place) for place, token in enumerate(build(row))], "failed")
        assert read(tagged) == read(marked) and tags_of(tagged) == list(range(len(row)))

    def test_what_carries_nothing_is_padding(self):
        tokens = [9, *type_token_ids([1], 0), 9, *type_token_ids([2], 1, "weight")]
        assert list(semantic_ids_of(tokens)) == [2, 0, 2, 1]

    @given(rows.filter(bool), st.integers(0, 19))
    def test_a_tag_changes_nothing_else_and_is_found_again(self, row, place):
        tokens = build(row)
        place %= len(tokens)
        tokens[place] = tag_id(tag_id(tokens[place], "former"), "tag")
        assert read(tokens) == row and read_off(tokens) == read_off(build(row))
        assert tags_of([9, *tokens]) == ["tag"] and tags_of(build(row)) == []


class TestFilling:
    @pytest.mark.parametrize(
        ("tokens", "expected"),
        [
            ("0--1-", "00011"),
            ("--2-", "2222"),
            ("-0-", "000"),
            ("12", "12"),
            ("", ""),
        ],
    )
    def test_the_id_before_decides_or_else_the_next(self, tokens, expected):
        row = [7 if kind == "-" else type_token_ids([7], int(kind))[0] for kind in tokens]
        assert "".join(map(str, semantic_ids_of(fill_types(row)))) == expected

    @given(st.lists(st.tuples(st.integers(0, 99), st.none() | facts), max_size=20))
    def test_property(self, row):
        tokens = [token if carried is None else type_token_ids([token], *carried)[0] for token, carried in row]
        known = [carried for _, carried in row if carried is not None]
        if row and not known:
            with pytest.raises(ValueError, match="None of these token ids carries a semantic type"):
                fill_types(tokens)
            return

        expected = []
        for index, (token, _) in enumerate(row):
            before = [carried for _, carried in row[: index + 1] if carried is not None]
            expected.append((token, before[-1] if before else known[0]))
        assert read(fill_types(tokens)) == expected
        assert count_plain(tokens) == len(row) - len(known)
        assert tokens == [token for token, _ in row]
