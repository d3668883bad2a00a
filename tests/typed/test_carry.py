"""Types carried over to changed texts: what is left keeps its type, and what is a guess says so."""

import pickle
import time

from hypothesis import given
from hypothesis import strategies as st
from typed_pieces import GLOBAL, LANDMARK, NOISE, by_character, characters, join, spans

from hsa_factory import SemanticType
from hsa_factory.typed.carry import align, carry_types, type_rendered_text
from hsa_factory.typed.text import TypedText


class TestCarrying:
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

    @given(
        st.lists(st.tuples(st.sampled_from(SemanticType), st.booleans(), st.sampled_from(["", "", "@", "@@"]))),
        st.sampled_from([None, GLOBAL]),
    )
    def test_what_is_left_keeps_its_types(self, row, added):
        """Characters that occur once are removed, and others put in before them."""
        text, changed, expected = TypedText("", NOISE), "", []
        for number, (kind, is_left, inserted) in enumerate(row):
            character = chr(0x4E00 + number)
            text += TypedText(character, kind)
            changed += inserted + (character if is_left else "")
            expected += [kind] if is_left else []
        aligned = align(text, changed, added=added)
        assert aligned == changed
        assert [k for k, c in zip(by_character(aligned), changed) if c != "@"] == expected
        if added is not None and all(is_left for _, is_left, _ in row):
            assert {k for k, c in zip(by_character(aligned), changed) if c == "@"} <= {added}

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
