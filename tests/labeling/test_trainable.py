"""What training makes of samples whose texts are none, and what it refuses; `label` asks the same."""

import json

import pytest

from hsa_factory.labeling.formats import DatasetFormat
from hsa_factory.labeling.trainable import as_texts, check_trainable


TAGS = {
    "messages": "messages",
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "call",
    "system": "system",
}
SHAREGPT, OPENAI = DatasetFormat("sharegpt", **TAGS), DatasetFormat("openai", **TAGS)
ALPACA = DatasetFormat("alpaca")


def talk(*pairs, **columns):
    return {"messages": [{"role": role, "content": content} for role, content in pairs], **columns}


def contents(sample, dataset_format=SHAREGPT):
    return [message["content"] for message in as_texts(sample, dataset_format)["messages"]]


@pytest.mark.parametrize(
    "value", [{"temperature": 3, "unit": None}, [{"title": "冰"}], [1, 2], 3, 2.5, True, [], [{"a": 1}, "b"]]
)
@pytest.mark.parametrize("role", ["tool", "call"])
def test_what_a_tool_is_given_and_returns_becomes_json(role, value):
    (text,) = contents(talk((role, value)))
    assert json.loads(text) == value and "\\u" not in text


def test_parts_stay_parts():
    parts = [{"type": "text", "text": "a"}, "b", {"image": "c.png"}]
    for role in ("user", "assistant", "tool"):
        assert contents(talk((role, parts))) == [parts]
    assert [json.loads(text) for text in contents(talk(("call", parts)))] == [parts]


def test_nothing_is_changed_where_nothing_has_to_be():
    sample = talk(("user", "a"), ("assistant", ""), ("tool", "{}"), tools="[]", system=None)
    assert as_texts(sample, SHAREGPT) == sample
    assert as_texts(sample, SHAREGPT)["messages"] is sample["messages"]


def test_tools_become_json_and_missing_keys_are_there():
    tools = [{"name": "go", "parameters": {"to": {"type": "string"}}}]
    sample = talk(("user", "a"), tools=tools)
    sample["messages"] += [{"content": "b"}, {"role": "assistant", "tool_calls": [{"function": {"name": "go"}}]}]
    read = as_texts(sample, OPENAI)
    assert json.loads(read["tools"]) == tools
    assert [(message["role"], message["content"]) for message in read["messages"]] == [
        ("user", "a"),
        (None, "b"),
        ("assistant", None),
    ]


@pytest.mark.parametrize(
    ("sample", "dataset_format", "message"),
    [
        (3, SHAREGPT, "expected an object, got 3"),
        (None, ALPACA, "expected an object, got None"),
        (
            talk(("user", "a"), ("assistant", 3)),
            SHAREGPT,
            "turn 1: content: expected a text or a list of parts, got 3",
        ),
        (talk(("user", False)), OPENAI, "turn 0: content: expected a text or a list of parts, got False"),
        (talk(("user", {"a": 1})), SHAREGPT, "turn 0: content: expected a text"),
        (talk(("user", "a"), ("assistant", None)), OPENAI, "turn 1: 'content' is null"),
        (talk(("user", "a"), ("tool", None)), SHAREGPT, "turn 1: 'content' is null"),
        (talk(("user", "a"), system=3), SHAREGPT, "system: expected a text, got 3"),
        (talk(("user", "a"), tools=3), SHAREGPT, "tools: expected a text, got 3"),
        ({"instruction": "a", "input": "", "output": 42}, ALPACA, "output: expected a text, got 42"),
        ({"instruction": 5, "input": "", "output": "b"}, ALPACA, "instruction, input: expected texts"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": -0.5}]}, SHAREGPT, "turn 0: weight -0.5"),
    ],
)
def test_what_cannot_be_trained_is_named(sample, dataset_format, message):
    with pytest.raises(ValueError, match=message):
        check_trainable(as_texts(sample, dataset_format), dataset_format)


def test_what_can_be_trained():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "go", "arguments": {"a": 1}}}]}
    sample = talk(("system", None), ("user", "a"))
    sample["messages"] += [call, {"role": "tool", "content": {"b": 2}}]
    turns = check_trainable(as_texts(sample, OPENAI), OPENAI)
    assert [turn.message.role for turn in turns] == ["system", "user", "function", "observation"]
    assert turns[3].message.text == '{"b": 2}'
    check_trainable({"instruction": "a", "input": None, "output": None}, ALPACA)  # left out, and counted
