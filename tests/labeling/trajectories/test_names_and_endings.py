"""What the public formats call the same thing, and how they end."""

from collections import Counter

import pytest

from hsa_factory.labeling.detect import detect_entry, tagged_entry
from hsa_factory.labeling.formats import DatasetFormat, read_sample
from hsa_factory.labeling.trajectories.normalise import normalise


QUESTION = {"role": "user", "content": "q"}


def read(sample):
    """Return (role, text) of each message, and what was counted."""
    dataset_format = DatasetFormat.from_entry(tagged_entry(detect_entry([sample])))
    notes = Counter()
    turns = read_sample(normalise(sample, dataset_format, notes=notes), dataset_format)
    return [(turn.message.role, turn.message.text) for turn in turns], notes


def test_a_functions_reply_without_a_name():
    """ToolBench: `function` after a reply is what the function returned; a call has an observation after it."""
    pairs = [("user", "q"), ("assistant", "Action: get"), ("function", "22"), ("assistant", "It is 22.")]
    sample = {"conversations": [{"from": role, "value": text} for role, text in pairs]}
    assert [role for role, _ in read(sample)[0]] == ["user", "assistant", "observation", "assistant"]

    call = '{"name": "get", "arguments": {}}'
    pairs = [("human", "q"), ("function", call), ("observation", "22"), ("gpt", "It is 22.")]
    sample = {"conversations": [{"from": role, "value": text} for role, text in pairs]}
    assert [role for role, _ in read(sample)[0]] == ["user", "function", "observation", "assistant"]


@pytest.mark.parametrize(
    "thought",
    [
        {"reasoning_content": "Hm."},
        {"reasoning": "Hm."},
        {"reasoning_text": "Hm."},
        {
            "reasoning_details": [
                {"type": "reasoning.text", "text": "Hm."},
                {"type": "reasoning.encrypted", "data": "x"},
            ]
        },
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "Hm."}], "reasoning": None},
        {"thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "x"}]},
    ],
)
def test_keys_of_reasoning(thought):
    messages, notes = read({"messages": [QUESTION, {"role": "assistant", "content": "a", **thought}]})
    assert messages[1] == ("assistant", "<think>\nHm.\n</think>\n\na")
    assert sum(notes.values()) == 1


@pytest.mark.parametrize("end", [{"role": "exit", "content": "x", "extra": {}}, {"role": "user", "content": "diff"}])
def test_mini_swe_agent_ends_with_how_it_ended(end):
    sample = {
        "messages": [QUESTION, {"role": "assistant", "content": "a"}, end],
        "trajectory_format": "mini-swe-agent-1",
    }
    messages, notes = read(sample)
    assert messages == [("user", "q"), ("assistant", "a")]
    assert notes == {"messages after the last reply left out": 1}
