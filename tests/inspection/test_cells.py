"""Cells: whole characters and runs, whatever the tokens are."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsa_factory.inspection.cells import group_tokens


TEXTS = [
    "open the fridge",
    "苹果在冰箱里。",
    "👩‍🚒🏳️‍🌈",
    "مرحبا بالعالم",
    "שלום",
    "e\u0301\u0323",
    "a\ufffdb",
    "\U0001f9d1\U0001f3fd",
]


def cells_of(tokenizer, ids, breaks=()):
    decode = lambda part: tokenizer.decode(part, clean_up_tokenization_spaces=False)
    return group_tokens(ids, [decode([token]) for token in ids], decode, breaks)


@pytest.mark.parametrize("text", TEXTS)
def test_cells_are_whole_characters(tiny_tokenizer, text):
    ids = tiny_tokenizer.encode(text, add_special_tokens=False)
    cells = cells_of(tiny_tokenizer, ids)
    assert sum(size for size, _ in cells) == len(ids)
    if "\ufffd" not in text:  # a replacement character of the data's own stays in pieces
        assert "".join(piece for _, piece in cells) == unicodedata.normalize("NFC", text)


@given(
    pieces=st.lists(st.sampled_from(TEXTS) | st.text(max_size=8), max_size=6),
    breaks=st.lists(st.integers(0, 60), max_size=5),
)
def test_property(tiny_tokenizer, pieces, breaks):
    ids = tiny_tokenizer.encode("".join(pieces), add_special_tokens=False)
    cells = cells_of(tiny_tokenizer, ids, breaks)
    ends, total = set(), 0
    for size, _ in cells:
        assert size >= 1
        total += size
        ends.add(total)
    assert total == len(ids)
    assert {place for place in breaks if 0 < place < len(ids)} <= ends


def test_long_runs_become_one_cell():
    ids = [1, 7, 7, 7, 7, 7, 2, 7, 7, 7, 7, 3]
    tokens = ["a", *["#"] * 5, "b", *["#"] * 4, "c"]
    cells = group_tokens(ids, tokens, lambda part: pytest.fail("nothing to decode"))
    assert cells == [(1, "a"), (5, "#"), (1, "b"), *[(1, "#")] * 4, (1, "c")]
    assert group_tokens([7] * 10, ["#"] * 10, None, breaks=[4]) == [*[(1, "#")] * 4, (6, "#")]


def test_a_character_that_is_never_complete_stays_as_it_is(tiny_tokenizer):
    ids = tiny_tokenizer.encode("苹", add_special_tokens=False)[:-1]
    assert len(ids) >= 1
    cells = cells_of(tiny_tokenizer, ids)
    assert [size for size, _ in cells] == [1] * len(ids)
    assert group_tokens([], [], None) == []
