"""Typed text: spans through concatenation and templates, and the types of the tokens it becomes."""

import copy
import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typed_pieces import GLOBAL, LANDMARK, NOISE, by_character, characters, join, spans

from hsa_factory import SemanticType
from hsa_factory.typed.text import TypedText, token_types, without


def tokenize(tokenizer, text):
    """Return the ids of a text and their types."""
    batch = tokenizer([str(text)], add_special_tokens=False)
    ids = batch["input_ids"][0]
    return ids, list(token_types(text, batch.encodings[0].offsets, len(ids)))


class TestText:
    @given(spans, spans)
    def test_joining_keeps_text_and_spans(self, first, second):
        text = join(first) + join(second)
        assert text == "".join(piece for piece, _ in first + second)
        assert by_character(text) == characters(first + second)
        assert text.semantic_type == second[-1][1]
        assert text.is_uniform == (set(characters(first + second)) <= {second[-1][1]})

    def test_plain_text_takes_the_type_it_is_added_to(self):
        text = TypedText("ab", GLOBAL) + TypedText("c", NOISE) + "de"
        assert isinstance(text, TypedText) and text == "abcde"
        assert by_character(text) == [0, 0, 2, 2, 2]

    def test_plain_text_before_it_takes_the_type_it_is_added_to(self):
        text = "de" + (TypedText("ab", GLOBAL) + TypedText("c", NOISE))
        assert isinstance(text, TypedText) and text == "deabc"
        assert by_character(text) == [0, 0, 0, 0, 2]
        assert text.semantic_type is NOISE

    def test_equals_the_plain_text_in_every_other_respect(self):
        text = TypedText("abc", LANDMARK)
        assert text == "abc" and hash(text) == hash("abc") and f"{text}!" == "abc!"
        assert {"abc": 1}[text] == 1
        assert type(str(text)) is str

    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_the_type_may_be_a_number(self, number):
        assert TypedText("a", number).semantic_type == SemanticType(number)

    @given(spans)
    def test_pickle_and_copy(self, row):
        text = join(row)
        for other in (pickle.loads(pickle.dumps(text)), copy.deepcopy(text), copy.copy(text)):
            assert isinstance(other, TypedText)
            assert other == text and other.spans == text.spans


@st.composite
def slices(draw):
    text = join(draw(spans))
    return text, slice(*(draw(st.none() | st.integers(-len(text) - 2, len(text) + 2)) for _ in "ab"))


class TestChanging:
    @given(slices())
    def test_slicing(self, case):
        text, part = case
        assert isinstance(text[part], TypedText) and text[part] == str(text)[part]
        assert by_character(text[part]) == by_character(text)[part]
        assert text[part].semantic_type == text.semantic_type

    @given(
        spans,
        st.sampled_from(["a", "The", "think", "<", "zz"]),
        st.sampled_from(["", "x", "a<im>a"]),
        st.integers(-1, 3),
    )
    def test_replacing(self, row, old, new, count):
        """As on the plain text; character by character in a row of (character, type) pairs."""
        text = join(row)
        changed = text.replace(old, new, count)
        assert isinstance(changed, TypedText) and changed == str(text).replace(old, new, count)
        plain, kinds, expected, place = str(text), by_character(text), [], 0
        mixed = False
        while place < len(plain):
            if count and plain.startswith(old, place):
                replaced = kinds[place : place + len(old)]
                expected, mixed = expected + [min(replaced)] * len(new), mixed or len(set(replaced)) > 1
                place, count = place + len(old), count - 1
            else:
                expected.append(kinds[place])
                place += 1
        assert by_character(changed) == expected and changed.is_guessed == mixed

    def test_leaving_parts_out(self):
        text = TypedText("ab", GLOBAL) + TypedText("cd", NOISE) + TypedText("ef", LANDMARK)
        kept = without(text, [(1, 3), (5, 6)])
        assert kept == "ade" and by_character(kept) == [0, 2, 1]
        assert by_character(without(text, [])) == by_character(text)


class TestTokens:
    @given(row=spans)
    def test_each_token_takes_the_type_that_remembers_more(self, tiny_tokenizer, row):
        """Count the bytes of each token: an independent way to the characters it covers."""
        text = join(row)
        if unicodedata.normalize("NFC", text) != text:
            return

        ids, kinds = tokenize(tiny_tokenizer, text)
        bytewise = [kind for character, kind in zip(text, characters(row)) for _ in character.encode()]
        expected, start = [], 0
        for token in tiny_tokenizer.convert_ids_to_tokens(ids):  # byte level: one character a byte
            expected.append(min(bytewise[start : start + len(token)]))
            start += len(token)
        assert start == len(bytewise)
        assert kinds == expected

    def test_a_token_over_two_spans(self, tiny_tokenizer):
        for first in SemanticType:
            for second in SemanticType:
                text = TypedText(" ro", first) + TypedText("bot", second)
                assert tokenize(tiny_tokenizer, text)[1] == [min(first, second)]
                space = TypedText(" ", first) + TypedText("robot", second)
                assert tokenize(tiny_tokenizer, space)[1] == [min(first, second)]

    def test_the_ids_are_those_of_the_plain_text(self, tiny_tokenizer):
        text = TypedText("The ro", GLOBAL) + TypedText("bot opens", NOISE)
        assert tiny_tokenizer(text)["input_ids"] == tiny_tokenizer("The robot opens")["input_ids"]

    @pytest.mark.parametrize("semantic_type", list(SemanticType))
    def test_uniform_text_needs_no_offsets(self, semantic_type):
        assert list(token_types(TypedText("abc", semantic_type), None, 2)) == [semantic_type] * 2
        longer = TypedText("abc", semantic_type) + TypedText("", GLOBAL)
        assert list(token_types(longer, None, 2)) == [semantic_type] * 2

    @pytest.mark.parametrize(
        "text", [TypedText("", NOISE), TypedText("", NOISE) + "", TypedText("", 0) + TypedText("", 2)]
    )
    def test_empty_text(self, text, tiny_tokenizer):
        assert tokenize(tiny_tokenizer, text) == ([], [])

    def test_without_offsets_the_type_that_remembers_most(self):
        text = TypedText("a", NOISE) + TypedText("b", LANDMARK)
        assert list(token_types(text, None, 3)) == [1, 1, 1]

    def test_a_token_without_characters_takes_the_type_of_the_place_it_stands_at(self):
        """As SentencePiece makes them for the space it puts before a word."""
        text = TypedText("a", NOISE) + TypedText("b", LANDMARK)
        assert list(token_types(text, [(0, 1), (1, 1), (1, 2), (2, 2)], 4)) == [2, 1, 1, 1]
