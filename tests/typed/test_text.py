"""Typed text: spans through concatenation and templates, and the types of the tokens it becomes."""

import copy
import itertools
import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsa_factory import SemanticType
from hsa_factory.typed.text import TypedText, carry_types, find_runs, token_types, type_rendered_text, without


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


def tokenize(tokenizer, text):
    """Return the ids of a text and their types."""
    batch = tokenizer([str(text)], add_special_tokens=False)
    ids = batch["input_ids"][0]
    return ids, list(token_types(text, batch.encodings[0].offsets, len(ids)))


def characters(row):
    return [semantic_type for piece, semantic_type in row for _ in piece]


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
        while place < len(plain):
            if count and plain.startswith(old, place):
                expected += [kinds[place]] * len(new)
                place, count = place + len(old), count - 1
            else:
                expected.append(kinds[place])
                place += 1
        assert by_character(changed) == expected

    def test_leaving_parts_out(self):
        text = TypedText("ab", GLOBAL) + TypedText("cd", NOISE) + TypedText("ef", LANDMARK)
        kept = without(text, [(1, 3), (5, 6)])
        assert kept == "ade" and by_character(kept) == [0, 2, 1]
        assert by_character(without(text, [])) == by_character(text)

    @given(
        st.lists(
            st.tuples(st.sampled_from(["", "a", " b", "冰"]), st.sampled_from(SemanticType)), min_size=1, max_size=5
        )
    )
    def test_types_are_carried_over_expanded_placeholders(self, row):
        """Each placeholder becomes something that no text between them can be mistaken for."""
        text, changed, expected, media_kind = None, "", [], SemanticType((row[0][1] + 1) % 3)
        for number, (piece, kind) in enumerate(row):
            part = TypedText(piece, kind)
            changed, expected = changed + piece, expected + [kind] * len(piece)
            if number < len(row) - 1:
                part = part + TypedText("<image>", media_kind)
                changed, expected = changed + "[##]", expected + [media_kind] * 4
            text = part if text is None else text + part
        carried = carry_types(text, changed, ["<image>", "<video>"])
        assert carried == changed and by_character(carried) == expected

    def test_text_that_is_not_found_again_takes_the_type_that_remembers_most(self):
        text = TypedText("see", NOISE) + TypedText(" take", LANDMARK)
        assert by_character(carry_types(text, "something else", ["<image>"])) == [1] * 14

    def test_typed_text_is_left_as_it_is(self):
        text = TypedText("a", NOISE)
        assert carry_types(TypedText("<image>", GLOBAL), text, ["<image>"]) is text


class TestRendering:
    def test_the_content_keeps_its_spans_and_the_rest_is_the_messages(self):
        content = TypedText("see", NOISE) + TypedText(" take", LANDMARK)
        rendered = type_rendered_text("<user>see take<end>", content, 6)
        assert rendered == "<user>see take<end>"
        assert by_character(rendered) == [1] * 6 + [2] * 3 + [1] * 10

    def test_content_that_stands_in_the_prefix_too(self):
        content = TypedText("us", NOISE) + TypedText("er", LANDMARK)
        assert by_character(type_rendered_text("<user>user<end>", content, 6)) == [1] * 6 + [2] * 2 + [1] * 7

    def test_uniform_content(self):
        rendered = type_rendered_text("<user>see<end>", TypedText("see", NOISE), 6)
        assert by_character(rendered) == [2] * 14

    def test_what_does_not_hold_the_content_has_the_type_of_the_message(self):
        content = TypedText("see", NOISE) + TypedText(" take", LANDMARK)
        assert by_character(type_rendered_text("see take", content, None)) == [1] * 8

    def test_content_that_was_rewritten_has_the_type_of_its_message(self):
        content = TypedText('{"name": ', NOISE) + TypedText('"go"}', LANDMARK)
        assert by_character(type_rendered_text("<call>go()", content, 6)) == [1] * 10

    def test_a_thought_before_a_rewritten_call_keeps_its_type(self):
        content = TypedText("<think>so</think>", NOISE) + TypedText('{"name": "go"}', LANDMARK)
        rendered = type_rendered_text("<think>so</think>[go]", content, 0)
        assert by_character(rendered) == [2] * 17 + [1] * 4

    @given(spans, st.sampled_from(["", "<|user|>", "「"]), st.sampled_from(["", "<|end|>", "」\n"]))
    def test_property(self, row, before, after):
        content = join(row)
        kind = content.semantic_type
        rendered = type_rendered_text(before + str(content) + after, content, len(before))
        assert rendered == before + str(content) + after
        assert by_character(rendered) == [kind] * len(before) + characters(row) + [kind] * len(after)


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


@given(st.binary(max_size=40) | st.lists(st.sampled_from([0, 1, 2, 3, 255]), max_size=40).map(bytes))
def test_runs_cover_everything_and_differ_from_their_neighbours(types):
    found = find_runs(types)
    assert b"".join(bytes([kind]) * (end - start) for start, end, kind in found) == types
    assert [start for start, _, _ in found] == [0, *(end for _, end, _ in found)][: len(found)]
    assert all(one[2] != other[2] for one, other in itertools.pairwise(found))
