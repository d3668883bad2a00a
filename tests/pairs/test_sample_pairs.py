"""Pairs of samples: nothing of the conversation is lost or changed, in any format."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsa_factory.labeling.formats import DatasetFormat, read_sample
from hsa_factory.pairs import PairOptions, feedback_pairs
from hsa_factory.pairs.counts import PairCounts
from hsa_factory.pairs.feedback_turns import LeftOut
from hsa_factory.pairs.sample_pairs import WEIGHT_TAKEN_OFF, pairs_entry


F = "<|feedback|>"


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def talk(*contents):
    """Return messages of user and assistant in turn."""
    return [message(("user", "assistant")[number % 2], content) for number, content in enumerate(contents)]


def pairs(sample, entry=None, counts=None, **options):
    return list(feedback_pairs([sample], entry, PairOptions(**options), counts))


def left_out(messages, **options):
    """Return why the feedback in messages becomes no pair."""
    counts = PairCounts()
    assert pairs({"messages": messages}, counts=counts, **options) == []
    return dict(counts.left_out)


pieces = st.text(st.sampled_from("ab \n<>|é🙂"), max_size=6)
contents = st.lists(st.lists(pieces, min_size=1, max_size=3), min_size=2, max_size=9)


@settings(max_examples=150, deadline=None)
@given(contents, st.lists(st.sampled_from(["GLOBAL", "NOISE", None]), min_size=9, max_size=9))
def test_prompt_and_replies_are_the_conversation(contents, types):
    """The prompt is its beginning; mistake and correction follow one after the other, with a marker between them."""
    messages = []
    for number, (content, kind) in enumerate(zip(contents, types)):
        unlike = [f"{piece}#{number}.{place}#{piece}" if piece else "" for place, piece in enumerate(content)]
        messages += [message(("user", "assistant")[number % 2], F.join(unlike), semantic_type=kind)]
    counts = PairCounts()
    made = pairs({"messages": messages, "id": 7}, counts=counts)
    assert counts.feedback == len(made) + counts.left_out.total() and counts.pairs == len(made)
    for pair in made:
        prompt, wrong, right = pair["messages"], pair["rejected"], pair["chosen"]
        assert pair["id"] == 7 and prompt == messages[: len(prompt)] and prompt[-1]["role"] == "user"
        rest = messages[len(prompt) :]
        before, found, after = "".join(entry["content"] for entry in rest).partition(wrong["content"])
        between, found_too, after = after.partition(right["content"])
        assert found and found_too and F in between and F not in wrong["content"] + right["content"]
        assert not before.strip() or F in before  # what stands before it in its message failed as well
        assert after.strip() == "" or not after.lstrip().startswith(F)  # nothing judged the correction
        assert wrong["semantic_type"] == rest[0]["semantic_type"] and wrong["role"] == right["role"] == "assistant"


class TestWhatIsKept:
    def test_spans_of_a_part(self):
        text = f"go left {F} no, right"
        spans = [
            {"start": 3, "end": 7, "semantic_type": "NOISE"},
            {"start": 10, "end": 30, "semantic_type": "LANDMARK"},
        ]
        reply = message("assistant", text, semantic_type="GLOBAL", semantic_spans=spans)
        (pair,) = pairs({"messages": [message("user", "q"), reply]})
        assert pair["rejected"] == reply | {
            "content": "go left",
            "semantic_spans": [{"start": 3, "end": 7, "semantic_type": "NOISE"}],
        }
        right = pair["chosen"]
        assert right["content"] == "no, right" and right["semantic_type"] == "GLOBAL"
        (span,) = right["semantic_spans"]
        assert right["content"][span["start"] : span["end"]] == "no, right" and span["semantic_type"] == "LANDMARK"

    def test_parts_of_a_reply(self):
        parts = [
            {"type": "text", "text": "go ", "semantic_type": "NOISE"},
            f"left{F}",
            {"type": "text", "text": " right"},
        ]
        (pair,) = pairs({"messages": [message("user", "q"), message("assistant", parts)]})
        assert pair["rejected"]["content"] == [parts[0], "left"]
        assert pair["chosen"]["content"] == [{"type": "text", "text": "right"}]

    def test_media_of_the_prompt_alone(self):
        messages = talk("<image>a<image>", "A", f"{F}<image>", "B", "<image><video>", "C", F, "D")
        first, second = pairs(
            {"messages": messages, "images": [*"1234"], "videos": ["v"], "tools": "[]", "system": "s"}
        )
        assert first["images"] == ["1", "2"] and first["videos"] == []
        assert second["images"] == [*"1234"] and second["videos"] == ["v"]
        assert first["tools"] == "[]" and first["system"] == "s"

    def test_files_that_parts_name(self):
        seen = message("user", [{"type": "image", "image": "own.png"}, {"type": "image"}, "look"])
        messages = [seen, message("assistant", "A"), message("user", f"{F}<image>"), message("assistant", "B")]
        (pair,) = pairs({"messages": messages, "images": ["1.png", "2.png"]})
        assert pair["messages"] == [seen] and pair["images"] == ["1.png"]

    def test_weights(self):
        """A mistake that is kept out of the loss is the very thing that a pair trains against."""
        messages = talk("q", "A", F, "B")
        messages[0]["weight"] = 0
        for said in ({"weight": 0}, {"loss": False}, {"step_label": "Mistake"}, {"trainable": False}):
            counts = PairCounts()
            messages[1] = message("assistant", "A", **said)
            messages[3] = message("assistant", "B", weight=2)
            (pair,) = pairs({"messages": messages}, counts=counts)
            assert pair["messages"][0]["weight"] == 0 and pair["chosen"]["weight"] == 2
            assert pair["rejected"] == message("assistant", "A") and counts.notes[WEIGHT_TAKEN_OFF] == 1
        messages[1] = message("assistant", "A", weight=0.5)
        assert pairs({"messages": messages})[0]["rejected"]["weight"] == 0.5


class TestFormats:
    def test_sharegpt(self):
        sample = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": f"A{F}B"}]}
        (pair,) = pairs(sample)
        assert pair["chosen"] == {"from": "gpt", "value": "B"} and pair["conversations"] == sample["conversations"][:1]
        entry = {"formatting": "sharegpt", "columns": {"messages": "conversations", "tools": "t", "images": "i"}}
        described = DatasetFormat.from_entry(pairs_entry(entry))
        assert [turn.message.text for turn in read_sample(pair, described)] == ["q", "B", "A"]
        assert pairs_entry(entry)["columns"] | {"tools": "t", "images": "i"} == pairs_entry(entry)["columns"]

    def test_calls_of_openai(self):
        """LLaMA-Factory would lose the calls of a chosen reply, and the replies of tools that end a prompt."""
        calls = [{"id": "1", "type": "function", "function": {"name": "go", "arguments": '{"to": "x"}'}}]
        messages = [
            message("user", "q", tool_calls=None),
            message("assistant", None, tool_calls=calls * 2),
            message("tool", "one", tool_calls=None, semantic_type="NOISE"),
            message("tool", "two", tool_calls=None, semantic_type="GLOBAL"),
            message("assistant", None, tool_calls=calls, semantic_type="LANDMARK"),
            message("tool", f"{F} wall", tool_calls=None),
            message("assistant", "stop", tool_calls=None),
        ]
        entry = {"formatting": "openai", "columns": {"messages": "messages"}}
        entry["tags"] = {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        }
        entry["tags"] |= {
            "observation_tag": "tool",
            "function_tag": "call",
            "system_tag": "system",
            "semantic_tag": "semantic_type",
        }
        (pair,) = pairs({"messages": messages}, entry)
        described = pairs_entry(entry)
        assert described["formatting"] == "sharegpt" and described["tags"] == entry["tags"]
        assert [entry["role"] for entry in pair["messages"]] == ["user", "call", "tool"]
        both = pair["messages"][2]
        assert both["content"] == "one\n</tool_response>\n<tool_response>\ntwo" and both["semantic_type"] == "GLOBAL"
        assert both["semantic_spans"] == [{"start": 0, "end": 3, "semantic_type": "NOISE"}]
        assert pair["rejected"]["role"] == "call" and pair["rejected"]["semantic_type"] == "LANDMARK"
        assert json.loads(pair["rejected"]["content"]) == [calls[0]["function"]]
        assert "tool_calls" not in pair["rejected"] and pair["chosen"]["content"] == "stop"

    def test_pictures_in_replies_of_parallel_calls(self):
        picture = [{"type": "image", "image": "own.png"}, "seen"]
        messages = [
            message("user", "q"),
            message("assistant", None, tool_calls=[{"function": {"name": "a", "arguments": {}}}]),
        ]
        messages += [
            message("tool", picture),
            message("tool", "two", semantic_type="NOISE"),
            message("assistant", f"A{F}B"),
        ]
        (pair,) = pairs({"messages": messages})
        assert pair["messages"][2]["content"] == [
            {"type": "image", "image": "own.png"},
            {"type": "text", "text": "seen\n</tool_response>\n<tool_response>\ntwo"},
        ]

    def test_alpaca(self):
        sample = {
            "instruction": f"{F} no",
            "input": "try",
            "output": "B",
            "history": [["q", "A"]],
            "system": "s",
            "id": 3,
        }
        types = [{"role": "system", "semantic_type": "NOISE"}]
        types += [{"role": role, "semantic_type": "LANDMARK"} for role in ("user", "assistant", "user", "assistant")]
        (pair,) = pairs(sample | {"semantic_types": types})
        said = {"semantic_type": "LANDMARK"}
        assert pair == {
            "system": "s",
            "id": 3,
            "semantic_types": types[:1],
            "conversations": [{"from": "human", "value": "q"} | said],
            "chosen": {"from": "gpt", "value": "B"} | said,
            "rejected": {"from": "gpt", "value": "A"} | said,
        }


class TestWhatIsLeftOut:
    @pytest.mark.parametrize(
        ("messages", "reason"),
        [
            (talk("q", "A", F, " "), LeftOut.EMPTY_CORRECTION),
            (talk("q", "", F, "B"), LeftOut.EMPTY_MISTAKE),
            (talk("q", "A", F, "A "), LeftOut.SAME),
            (talk("q", f"<think>a {F} b</think> c"), LeftOut.IN_A_THOUGHT),
            ([message("assistant", "A"), message("user", F), message("assistant", "B")], LeftOut.NO_PROMPT),
            (
                [message("system", "s"), message("assistant", "A"), message("user", F), message("assistant", "B")],
                LeftOut.NO_PROMPT,
            ),
            (
                [message("user", "p"), *talk("q", "A", F, "B")],
                f"{LeftOut.ORDER}: two messages of the user's side in a row",
            ),
        ],
    )
    def test_by_reason(self, messages, reason):
        assert left_out(messages) == {reason: 1}

    def test_media_in_a_reply(self):
        counts = PairCounts()
        assert pairs({"messages": talk("q", "A<image>", F, "B"), "images": ["1"]}, counts=counts) == []
        assert counts.left_out == {LeftOut.MEDIA: 1}
        assert len(pairs({"messages": talk("q", "write <image>", F, "B")})) == 1  # a text like any other

    def test_a_marker_in_a_call(self):
        calls = [{"function": {"name": "say", "arguments": {"text": f"a {F} b"}}}]
        messages = [message("user", "q"), message("assistant", None, tool_calls=calls)]
        assert left_out(messages) == {LeftOut.IN_A_CALL: 1}

    def test_a_correction_that_is_not_trained(self):
        assert left_out([*talk("q", "A", F), message("assistant", "B", weight=0)]) == {LeftOut.UNTRAINED: 1}

    def test_where_the_first_stands(self):
        counts = PairCounts()
        samples = [{"messages": talk("q", "A")}, {"messages": talk(F, "A", F)}]
        assert list(feedback_pairs(samples, counts=counts)) == []
        assert (counts.samples, counts.unmarked, counts.messages, counts.feedback) == (2, 1, 5, 2)
        assert counts.first_left_out[LeftOut.NO_MISTAKE] == "sample 1, turn 0"
        with pytest.raises(
            ValueError, match="x: there are no pairs, as all 2 feedback turns were left out: 1: there is"
        ):
            counts.check_result("x")
        with pytest.raises(ValueError, match="no feedback in 1 sample,.*another --token"):
            PairCounts(samples=1).check_result("x")


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        ({"messages": talk("<image>", "A", F, "B"), "images": ["1", "2"]}, "images: there are 2 files, but 1 places"),
        ({"messages": talk("q", "A", F, "B"), "chosen": 1}, "it has a column 'chosen'"),
        ({"messages": [message("robot", "q")]}, "turn 0: role = 'robot' is not allowed"),
        ({"messages": [message("user", None), *talk("q", "A")[1:]]}, "turn 0: 'content' is null"),
        ({"messages": 3}, "messages: expected a list of messages, got 3"),
    ],
)
def test_bad_samples_are_named(sample, problem):
    counts = PairCounts()
    good = {"messages": talk("q", "A", F, "B")}
    made = feedback_pairs([good, sample], counts=counts)
    assert next(made)["chosen"]["content"] == "B"
    with pytest.raises(ValueError, match=f"sample 1: {problem}"):
        next(made)
    assert counts.samples == 1 and counts.left_out == Counter()


def test_pairs_are_no_trajectories():
    with pytest.raises(ValueError, match="are pairs already"):
        pairs({"messages": []}, {"formatting": "sharegpt", "ranking": True})
    assert list(feedback_pairs([])) == []
