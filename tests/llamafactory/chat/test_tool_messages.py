"""Tool calls and replies in requests: the ids and types of a prompt are those of the same conversation in training."""

import json

import pytest


pytest.importorskip("fastapi")
pytest.importorskip("sse_starlette")

import llamafactory.api.app  # noqa: E402
import llamafactory.api.chat  # noqa: E402
from llamafactory.chat import ChatModel  # noqa: E402

from hsa_factory import HSAConfig  # noqa: E402
from hsa_factory.labeling.detect import detect_entry, tagged_entry  # noqa: E402
from hsa_factory.labeling.formats import DatasetFormat  # noqa: E402
from hsa_factory.labeling.trajectories.normalise import normalise  # noqa: E402
from hsa_factory.llamafactory import integrate  # noqa: E402
from hsa_factory.llamafactory.chat.api import api_seams  # noqa: E402
from hsa_factory.llamafactory.chat.tool_messages import with_readable_arguments  # noqa: E402
from hsa_factory.llamafactory.seams import installed  # noqa: E402
from hsa_factory.models.enable import get_state  # noqa: E402


G, L, N = 0, 1, 2
SYSTEM = "detailed thinking off"  # LLaMA-Factory puts it into openai data that have none
CALLS = [{"name": name, "arguments": json.dumps({"to": f"<m{k}>"})} for k, name in enumerate(["go", "look"], 1)]
PART_RULES = [{"role": "observation", "pattern": "<m3>|<m5>", "type": "LANDMARK"}]
RULE_SETS = [
    [],
    [{"role": "observation", "contains": "<m3>", "type": "LANDMARK"}],
    [{"role": "observation", "contains": "<m3>", "type": "NOISE"}],
    PART_RULES,
    [*PART_RULES, {"role": "observation", "contains": "<m5>", "type": "NOISE"}],
    [{"role": "observation", "turn": 1, "type": "LANDMARK"}],
    [{"role": "observation", "tool": "look", "type": "LANDMARK"}],
]


@pytest.fixture(scope="module")
def model(lf):
    with integrate(HSAConfig()):
        return ChatModel({"model_name_or_path": str(lf.model_dir("qwen3")), "template": "qwen3_nothink"})


def request_of(messages):
    calls = [{"id": str(k), "type": "function", "function": call} for k, call in enumerate(CALLS)]
    messages = [
        {**message, "content": None, "tool_calls": calls} if message.get("tool_calls") else message
        for message in messages
    ]
    return llamafactory.api.app.ChatCompletionRequest.model_validate({"model": "m", "messages": messages})


def conversation(lf, replies):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": call} for call in CALLS]}
    return [lf.say("user", "<m0>"), call, *(lf.say("tool", text) for text in replies)]


@pytest.mark.parametrize("rules", RULE_SETS)
@pytest.mark.parametrize(
    "replies, typed", [(["<m3> a", "<m5> b"], False), (["<m4>", "<m3>", "<m4>\n<m5>"], True)], ids=["two", "three"]
)
def test_parallel_calls_are_read_as_in_training(lf, model, tmp_path, monkeypatch, rules, replies, typed):
    messages = conversation(lf, replies)
    if typed:
        messages[-1]["semantic_type"] = "NOISE"
    tags = {**lf.TAGS, "observation_tag": "tool"}
    entry = {"formatting": "openai", "columns": {"messages": "messages"}, "tags": tags}
    lf.write_data(tmp_path, data=(entry, [{"messages": [*messages, lf.say("assistant", "<m6>")]}]))
    config = HSAConfig(rules=rules or None)
    (row,) = lf.prepare(lf.args(tmp_path, "data", template="qwen3_nothink"), config).rows()

    engine = model.engine
    monkeypatch.setattr(get_state(engine.model), "config", config)
    with integrate(HSAConfig()):
        request = request_of([lf.say("system", SYSTEM), *messages])
        read, system, *rest = llamafactory.api.chat._process_request(request)
        parts = (engine.model, engine.tokenizer, engine.processor, engine.template, engine.generating_args)
        given, length = engine._process_args(*parts, read, system, *rest, {})
    assert given["inputs"][0].tolist() == row["input_ids"][:length]
    assert given["semantic_ids"][0].tolist() == row["semantic_ids"][:length]


def test_replies_may_be_parts(lf, model):
    texts = conversation(lf, ["<m3>", "<m4>"])
    parts = conversation(lf, [[{"type": "text", "text": "<m3>"}], "<m4>"])
    with integrate(HSAConfig()):
        read = [llamafactory.api.chat._process_request(request_of(messages)) for messages in (texts, parts)]
    assert read[0] == read[1]
    assert read[0][0][-1]["content"] == "<m3>\n</tool_response>\n<tool_response>\n<m4>"


@pytest.mark.parametrize("tool_format", ["lfm2", "glm4_moe", "qwen3_5"])
def test_formats_that_write_one_argument_after_the_other(lf, model, tool_format):
    """Plain LLaMA-Factory fails: a client sends the arguments as a text."""
    from llamafactory.data.formatter import FunctionFormatter

    formatter = FunctionFormatter(slots=["{{content}}<|im_end|>\n"], tool_format=tool_format)
    expected = formatter.apply(
        content=json.dumps([{**call, "arguments": json.loads(call["arguments"])} for call in CALLS])
    )
    engine = model.engine
    former = engine.template.format_function
    engine.template.format_function = formatter
    try:
        with integrate(HSAConfig()):
            read, *rest = llamafactory.api.chat._process_request(request_of(conversation(lf, ["<m3>"])))
            parts = (engine.model, engine.tokenizer, engine.processor, engine.template, engine.generating_args)
            given, _ = engine._process_args(*parts, read, *rest, {})
            read[1]["content"] = '[{"name": "go", "arguments": "no JSON"}]'
            with pytest.raises(ValueError, match="tool call must be JSON"):
                engine._process_args(*parts, read, *rest, {})
    finally:
        engine.template.format_function = former
    assert expected[0] in engine.tokenizer.decode(given["inputs"][0])


def test_text_beside_calls_is_read_as_in_training(model):
    """A client sends back the whole reply; the prompt has what training has, and not the calls alone."""
    call = {"id": "1", "type": "function", "function": {"name": "go", "arguments": '{"to": "<m1>"}'}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "content": "b"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "c"},
    ]
    entry = tagged_entry(detect_entry([{"messages": messages}]))
    trained = normalise({"messages": messages}, DatasetFormat.from_entry(entry))["messages"]
    with installed(api_seams()):
        request = llamafactory.api.app.ChatCompletionRequest.model_validate({"model": "m", "messages": messages})
        sent = llamafactory.api.chat._process_request(request)[0]
    read = with_readable_arguments(sent, model.engine.template)
    assert [message["content"] for message in read] == [message["content"] for message in trained]
    assert "I look." in read[1]["content"] and "Hm." in read[1]["content"]
