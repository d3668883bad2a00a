"""Parts of tool calls through LLaMA-Factory's own formats: every part has its type wherever the format puts it."""

import json

import pytest
from llamafactory.data.formatter import FunctionFormatter
from llamafactory.data.template import TEMPLATES, Llama2Template
from llamafactory.data.tool_utils import TOOLS
from typed_oracle import types_by_mark

from hsa_factory import HSAConfig
from hsa_factory.llamafactory.data.template import typed_template
from hsa_factory.semantics import SemanticType
from hsa_factory.typed.spans import find_runs
from hsa_factory.typed.text import TypedText


G, L, N = SemanticType
ARGUMENTS = {"path": '/tmp/α "β"', "command": "ls α\nж\\", "lines": [1, "α", {"α": None}], "α": "ж", "force": True}
CALLS = [
    {"name": "bash", "arguments": ARGUMENTS},
    {"arguments": {"command": "ls α", "α": "\t"}, "name": "ω"},
]
RULES = [
    {"role": "function", "pattern": '"command": "(?P<span>[^"]*)"', "type": "LANDMARK"},
    {"role": "function", "pattern": "<m5>|<m[67]>", "type": "GLOBAL"},
    {"role": ["user", "assistant", "function", "observation"], "type": "NOISE"},
]


def kinds_of(text):
    """Type a text by its letters, which stand in no template: Greek is LANDMARK, Cyrillic GLOBAL, all else NOISE."""
    return bytes(L if "α" <= c <= "ω" else G if "а" <= c <= "я" else N for c in text)


def typed(text):
    return TypedText(text, N, find_runs(kinds_of(text)))


def one_of_each():
    """Return the name of one template for each way in which tool calls are written."""
    seen = {}
    for name, template in sorted(TEMPLATES.items()):
        formatter = template.format_function
        if isinstance(formatter, FunctionFormatter):
            seen.setdefault((formatter.tool_format, type(template).__name__, str(formatter.slots)), name)
    return list(seen.values())


@pytest.mark.parametrize("name", one_of_each())
def test_every_format_keeps_the_types_of_parts(name):
    template = TEMPLATES[name]
    own = typed_template(template, N)
    start, end = template.thought_words
    thoughts = ["", f"{start}so α it is ж{end}", "see α <tool_call>", "see α <|tool_call_start|>"]
    behind = {2: "</tool_call> ж", 3: "<|tool_call_end|> ж"}
    tried = 0
    for number, thought in enumerate(thoughts):
        for calls in (CALLS[:1], CALLS):
            for separators in (None, (",", ":")):
                raw = json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False, separators=separators)
                content = typed(thought + raw + behind.get(number, ""))
                words = (
                    {}
                    if isinstance(template, Llama2Template)
                    else {
                        "thought_words": template.thought_words,
                        "tool_call_words": template.tool_call_words,
                    }
                )
                try:
                    plain = template.format_function.apply(content=str(content), **words)
                except (RuntimeError, ValueError):  # plain LLaMA-Factory cannot take it
                    continue
                elements = own.format_function.apply(content=content, **words)
                tried += 1
                assert elements == plain
                for element in elements:
                    assert not isinstance(element, str) or element.types() == kinds_of(element)
                assert all(not hasattr(element, "lost_parts") for element in elements)
    assert tried >= 2


def test_all_formats_are_tried():
    assert {TEMPLATES[name].format_function.tool_format for name in one_of_each()} == set(TOOLS)


@pytest.mark.parametrize("tool_format", [None, "gemma4", "qwen3_5"])
@pytest.mark.parametrize("formatting", ["sharegpt", "openai"])
def test_rules_for_parts_of_calls(lf, tmp_path, tool_format, formatting, capsys):
    """Two calls with the same command and more; nothing that a rule decided is lost, and no id changes."""
    calls = [
        {"name": "<m1>", "arguments": {"path": "<m2>ls", "command": "<m3>ls"}},
        {"name": "<m4>", "arguments": {"path": "<m5>", "command": "<m6>\n<m7>"}},
    ]
    observation = lf.say("observation", "<m8>")
    if formatting == "openai":
        call = {"role": "assistant", "content": "", "tool_calls": [{"function": function} for function in calls]}
    else:
        call = lf.say("function", json.dumps(calls))
    messages = [lf.say("user", "<m0>"), call, observation, lf.say("assistant", "<m9>")]
    tags = {key: tag for key, tag in lf.TAGS.items() if key != "semantic_tag"}
    entry = {"formatting": formatting, "columns": {"messages": "messages"}, "tags": tags}
    lf.write_data(tmp_path, data=(entry, [{"messages": messages}]))
    args = lf.args(tmp_path, "data", tool_format=tool_format)
    prepared = lf.prepare(args, HSAConfig(rules=RULES))
    kinds = types_by_mark(lf, prepared)
    assert kinds == {0: N, 1: N, 2: N, 3: L, 4: N, 5: G, 6: L, 7: L, 8: N, 9: N}
    plain = lf.prepare(args)
    assert [row["input_ids"] for row in prepared.rows()] == [row["input_ids"] for row in plain.rows()]
    assert prepared.counts["lost_call_parts"] == prepared.counts["guessed_messages"] == 0
    assert "not kept" not in capsys.readouterr().out


def test_parts_that_are_left_out_are_counted(lf, tmp_path, capsys):
    call = {"name": "go", "id": "<m2>", "arguments": {"path": "<m3>"}}
    text = json.dumps(call)
    spans = [
        {"start": text.index(mark), "end": text.index(mark) + 4, "semantic_type": "LANDMARK"}
        for mark in ("<m2>", "<m3>")
    ]
    messages = [lf.say("user", "<m0>"), {**lf.say("function", text, "NOISE"), "semantic_spans": spans}]
    lf.write_data(tmp_path, data=[messages] * 3)
    prepared = lf.prepare(lf.args(tmp_path, "data"), HSAConfig())
    assert types_by_mark(lf, prepared) == {0: G, 3: L}
    assert prepared.counts["lost_call_parts"] == 3
    assert "data: types of 3 parts of tool calls not kept" in " ".join(capsys.readouterr().out.split())
