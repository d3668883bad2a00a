"""Typed text: spans through concatenation and templates, and the types of the tokens it becomes."""

import copy
import pickle
import unicodedata
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsa_factory import SemanticType
from hsa_factory.labeling.typed_text import TypedText, token_types, type_rendered_text


GLOBAL, LANDMARK, NOISE = SemanticType
PIECES = [
    *"a e t\n .",
    "The",
    " robot",
    "fridge",
    "table. ",
    "打开",
    "冰",
    "é",
    "👩‍👧",
    "<think>",
    "<|im_end|>",
    "  ",
    "12",
]
pieces = st.tuples(st.sampled_from(PIECES) | st.just(""), st.sampled_from(SemanticType))
spans = st.lists(pieces, min_size=1, max_size=12)


def join(row):
    text = TypedText(*row[0])
    for piece in row[1:]:
        text = text + TypedText(*piece)
    return text


def by_character(text):
    return [semantic_type for length, semantic_type in text.spans for _ in range(length)]


def characters(row):
    return [semantic_type for piece, semantic_type in row for _ in piece]


class TestText:
    @given(spans, spans)
    def test_joining_keeps_text_and_spans(self, first, second):
        text = join(first) + join(second)
        assert text == "".join(piece for piece, _ in first + second)
        assert by_character(text) == characters(first + second)
        assert text.semantic_type == second[-1][1]
        assert text.is_uniform == (len(set(characters(first + second))) <= 1)

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


class TestRendering:
    def test_the_content_keeps_its_spans_and_the_rest_is_the_messages(self):
        content = TypedText("see", NOISE) + TypedText(" take", LANDMARK)
        rendered = type_rendered_text("<user>see take<end>", content)
        assert rendered == "<user>see take<end>"
        assert by_character(rendered) == [1] * 6 + [2] * 3 + [1] * 10

    def test_uniform_content(self):
        rendered = type_rendered_text("<user>see<end>", TypedText("see", NOISE))
        assert by_character(rendered) == [2] * 14

    def test_content_that_was_rewritten_has_the_type_of_its_message(self):
        content = TypedText('{"name": ', NOISE) + TypedText('"go"}', LANDMARK)
        assert by_character(type_rendered_text("<call>go()", content)) == [1] * 10

    @given(spans, st.sampled_from(["", "<|user|>", "「"]), st.sampled_from(["", "<|end|>", "」\n"]))
    def test_property(self, row, before, after):
        content = join(row)
        kind = content.semantic_type
        rendered = type_rendered_text(before + content + after, content)
        assert rendered == before + str(content) + after
        if content.is_uniform:
            assert set(by_character(rendered)) <= {kind}
        else:
            assert by_character(rendered) == [kind] * len(before) + characters(row) + [kind] * len(after)


class TestTokens:
    @given(row=spans)
    def test_each_token_takes_the_type_that_remembers_more(self, tiny_tokenizer, row):
        """Count the bytes of each token: an independent way to the characters it covers."""
        text = join(row)
        if unicodedata.normalize("NFC", text) != text:
            return

        ids = tiny_tokenizer(str(text), add_special_tokens=False)["input_ids"]
        bytewise = [kind for character, kind in zip(text, characters(row)) for _ in character.encode()]
        expected, start = [], 0
        for token in tiny_tokenizer.convert_ids_to_tokens(ids):  # byte level: one character a byte
            expected.append(min(bytewise[start : start + len(token)]))
            start += len(token)
        assert start == len(bytewise)
        assert token_types(text, ids, tiny_tokenizer) == expected

    def test_a_token_over_two_spans(self, tiny_tokenizer):
        ids = tiny_tokenizer(" robot", add_special_tokens=False)["input_ids"]
        assert len(ids) == 1
        for first in SemanticType:
            for second in SemanticType:
                text = TypedText(" ro", first) + TypedText("bot", second)
                assert token_types(text, ids, tiny_tokenizer) == [min(first, second)]
                space = TypedText(" ", first) + TypedText("robot", second)
                assert token_types(space, ids, tiny_tokenizer) == [min(first, second)]

    def test_the_ids_are_those_of_the_plain_text(self, tiny_tokenizer):
        text = TypedText("The ro", GLOBAL) + TypedText("bot opens", NOISE)
        assert tiny_tokenizer(text)["input_ids"] == tiny_tokenizer("The robot opens")["input_ids"]

    @pytest.mark.parametrize("semantic_type", list(SemanticType))
    def test_uniform_text_needs_no_tokenizer(self, semantic_type):
        assert token_types(TypedText("abc", semantic_type), [1, 2], None) == [semantic_type] * 2
        assert (
            token_types(TypedText("abc", semantic_type) + TypedText("", GLOBAL), [1, 2], None) == [semantic_type] * 2
        )

    @pytest.mark.parametrize(
        "text", [TypedText("", NOISE), TypedText("", NOISE) + "", TypedText("", 0) + TypedText("", 2)]
    )
    def test_empty_text(self, text, tiny_tokenizer):
        assert token_types(text, [], tiny_tokenizer) == []

    def test_a_slow_tokenizer_gives_the_type_that_remembers_most(self):
        text = TypedText("a", NOISE) + TypedText("b", LANDMARK)
        assert token_types(text, [1, 2, 3], SimpleNamespace(is_fast=False)) == [1, 1, 1]

    def test_ids_of_another_tokenization_give_the_type_that_remembers_most(self, tiny_tokenizer):
        text = TypedText("a", NOISE) + TypedText("b", LANDMARK)
        assert token_types(text, [1, 2, 3], tiny_tokenizer) == [1, 1, 1]

    def test_a_token_without_characters_takes_the_type_of_the_place_it_stands_at(self):
        """As SentencePiece makes them for the space it puts before a word."""

        class Tokenizer:
            is_fast = True

            def __call__(self, text, **options):
                assert options == {"add_special_tokens": False, "return_offsets_mapping": True}
                return {"input_ids": [5, 6, 7, 8], "offset_mapping": [(0, 1), (1, 1), (1, 2), (2, 2)]}

        text = TypedText("a", NOISE) + TypedText("b", LANDMARK)
        assert token_types(text, [5, 6, 7, 8], Tokenizer()) == [2, 1, 1, 1]
