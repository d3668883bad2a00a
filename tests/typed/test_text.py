"""Typed text: spans through concatenation and templates, and the types of the tokens it becomes."""

import copy
import pickle
import re
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsa_factory import SemanticType
from hsa_factory.typed.carry import align, carry_types, type_rendered_text
from hsa_factory.typed.text import TypedText, token_types, without


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
    return [semantic_type for start, end, semantic_type in text.spans for _ in range(start, end)]


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
        carried = carry_types(text, "something!else", ["<image>"])
        assert by_character(carried) == [1] * 14 and carried.is_guessed

    def test_a_change_between_placeholders_leaves_the_rest_its_types(self):
        text = TypedText("Look: ", NOISE) + TypedText("<image>", GLOBAL) + TypedText(" It is  a red cup.", NOISE)
        text = text + TypedText(" Take it.", LANDMARK)
        carried = carry_types(text, "Look: [##] It is a red cup. Take it.", ["<image>"])
        assert by_character(carried) == [2] * 6 + [0] * 4 + [2] * 17 + [1] * 9
        assert not carried.is_guessed

    def test_a_change_over_several_types_is_marked(self):
        text = TypedText("See <image>. ", NOISE) + TypedText("Take", LANDMARK) + TypedText("it.", NOISE)
        changed = "See [#]. Carry."
        carried = carry_types(text, changed, ["<image>"])
        assert carried.is_guessed
        assert by_character(carried) == [2] * 9 + [1] * 5 + [2]
        assert carried.part(0, 3).is_guessed and ("a" + carried).is_guessed and (carried + "a").is_guessed
        assert pickle.loads(pickle.dumps(carried)).is_guessed

    @given(spans, spans, st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["", "@", "@@ @"])), max_size=4))
    def test_insertions_and_nothing_else_keep_every_character(self, row, other, inserts):
        """Whatever is put in, and wherever: what was there keeps its types."""
        text = join(row)
        if "@" in text:
            return
        words = re.findall(r"[A-Za-z0-9_]+|\s+|.", str(text), re.DOTALL)
        for place, inserted in inserts:
            words.insert(min(place, len(words)), inserted)
        changed = "".join(words)
        if len(re.findall(r"[A-Za-z0-9_]+|\s+|.", changed, re.DOTALL)) != len([w for w in words if w]):
            return  # words grew together
        aligned = align(text, changed, added=GLOBAL)
        assert aligned == changed
        if "@ @" not in changed:
            kept = [kind for kind, character in zip(by_character(aligned), changed) if character != "@"]
            assert kept == by_character(text)

    def test_long_texts_are_aligned_in_time(self):
        words = "".join(f"word{number % 700} is, " for number in range(10_000))
        text = TypedText(words, NOISE) + TypedText("take it", LANDMARK)
        start = time.process_time()
        aligned = align(text, words.replace("word13 ", "word13  ") + "take it")
        assert time.process_time() - start < 10
        assert not aligned.is_guessed and by_character(aligned)[-7:] == [1] * 7

    def test_typed_text_is_left_as_it_is(self):
        text = TypedText("a", NOISE)
        assert carry_types(TypedText("<image>", GLOBAL), text, ["<image>"]) is text


class TestRendering:
    def test_the_content_keeps_its_spans_and_the_rest_is_the_messages(self):
        content = TypedText("see", NOISE) + TypedText(" take", LANDMARK)
        rendered = type_rendered_text("<user>see take<end>", content, 6, 14)
        assert rendered == "<user>see take<end>" and not rendered.is_guessed
        assert by_character(rendered) == [1] * 6 + [2] * 3 + [1] * 10

    def test_content_that_stands_in_the_prefix_too(self):
        content = TypedText("us", NOISE) + TypedText("er", LANDMARK)
        assert by_character(type_rendered_text("<user>user<end>", content, 6, 10)) == [1] * 6 + [2] * 2 + [1] * 7

    def test_uniform_content(self):
        rendered = type_rendered_text("<user>see<end>", TypedText("see", NOISE), 6, 9)
        assert by_character(rendered) == [2] * 14

    def test_what_does_not_hold_the_content_has_the_type_of_the_message(self):
        content = TypedText("see", NOISE) + TypedText(" take", LANDMARK)
        assert by_character(type_rendered_text("see take", content, None, None)) == [1] * 8

    def test_content_that_is_rendered_otherwise_keeps_the_types_of_its_words(self):
        content = TypedText('{"name": "go", "arguments": ', NOISE) + TypedText('{"to":"bed"}}', LANDMARK)
        before, after = '<call>{"name": "go", "arguments": ', '{"to": "bed"}}</call>'
        rendered = type_rendered_text(before + after, content, 0, len(before + after))
        assert by_character(rendered) == [1] * 6 + [2] * 28 + [1] * 21
        assert not rendered.is_guessed

    def test_content_that_is_not_found_again_is_marked(self):
        content = TypedText("{{ ", NOISE) + TypedText("go }}", LANDMARK)
        rendered = type_rendered_text("<call>???", content, 6, 9)
        assert by_character(rendered) == [1] * 9 and rendered.is_guessed

    def test_a_thought_before_a_rewritten_call_keeps_its_type(self):
        content = TypedText("<think>so</think>", NOISE) + TypedText('{"name": "go"}', LANDMARK)
        rendered = type_rendered_text("<think>so</think>[go]", content, 0, 21)
        assert by_character(rendered) == [2] * 17 + [1] * 4

    @given(spans, st.sampled_from(["", "<|user|>", "「"]), st.sampled_from(["", "<|end|>", "」\n"]))
    def test_property(self, row, before, after):
        content = join(row)
        kind = content.semantic_type
        whole = before + str(content) + after
        rendered = type_rendered_text(whole, content, len(before), len(whole) - len(after))
        assert rendered == whole
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
