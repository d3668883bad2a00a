"""Tool calls that a formatter writes anew: what is found again keeps its type, wherever it stands, and nothing else has it."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typed_pieces import GLOBAL, LANDMARK, NOISE

from hsa_factory.typed.spans import find_runs
from hsa_factory.typed.text import TypedText
from hsa_factory.typed.tool_call import type_tool_call


THOUGHT = ("<think>", "</think>")
CALL = ("<call>", "</call>")


def by_letter(text):
    """Type a text by its letters: those of Greek are LANDMARK, of Cyrillic GLOBAL, all else is NOISE."""
    kinds = bytes(LANDMARK if "α" <= c <= "ω" else GLOBAL if "а" <= c <= "я" else NOISE for c in text)
    return TypedText(text, NOISE, find_runs(kinds))


def part(text, start, end):
    return TypedText(text, NOISE, [(start, end, LANDMARK)])


def shown(text):
    """Return a text with brackets around what is LANDMARK."""
    return "".join(
        f"[{text[start:end]}]" if kind == LANDMARK else str(text)[start:end] for start, end, kind in text.spans
    )


# -- ways to write a call: what the models' formats differ in ---------------------------------------------------


def read(text):
    thought, found, call = text.rpartition("</think>")
    before, _, rest = call.rpartition("<call>")
    inner, _, after = rest.rpartition("</call>") if before or "<call>" in call else (call, "", "")
    calls = json.loads(inner)
    return thought + found + before + after, calls if isinstance(calls, list) else [calls]


def as_json(text):
    beside, calls = read(text)
    return beside + "".join(f"<call>\n{json.dumps(call, ensure_ascii=False)}\n</call>" for call in calls)


def reordered(text):
    beside, calls = read(text)
    return beside + "; ".join(
        f"{call['name']}:{json.dumps(call['arguments'], sort_keys=True, ensure_ascii=False)}" for call in calls
    )


def as_tags(text):
    beside, calls = read(text)
    written = ""
    for call in calls:
        written += f"<fn={call['name']}>"
        for name, value in call["arguments"].items():
            written += (
                f"<arg={name}>{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}</arg>"
            )
    return beside + written


def text_in_text(text):
    beside, calls = read(text)
    return beside + json.dumps(
        [{"function": json.dumps(call, ensure_ascii=False)} for call in calls], ensure_ascii=False
    )


WRITERS = [as_json, reordered, as_tags, text_in_text]

texts = st.lists(
    st.sampled_from(["α", "β γ", "ж", "ls", "\n", '"', "\\", "\t", "🍎", "\u2028", "name", "{", "}", ": ", "'", "7"]),
    max_size=5,
).map("".join)
names = st.sampled_from(["path", "command", "name", "a", "ab", "α", "ж", "αβ", "n"])
values = st.recursive(
    texts | st.sampled_from([1, -2.5, True, None, 1e20]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=4,
)
calls = st.builds(
    lambda n, a, flip: {"arguments": a, "name": n} if flip else {"name": n, "arguments": a},
    st.sampled_from(["bash", "ω"]),
    st.dictionaries(names, values, max_size=3),
    st.booleans(),
)


@given(
    st.lists(calls, min_size=1, max_size=3),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.sampled_from([("", ""), ('<think>so αж "it" </think>', ""), ("see α <call>", "</call> ж")]),
)
def test_every_part_is_found_and_nothing_else_changes(rows, indent, is_ascii, beside):
    """The oracle: letters that no writer puts in itself."""
    raw = json.dumps(rows if len(rows) > 1 else rows[0], ensure_ascii=False, indent=indent)
    text = beside[0] + raw + beside[1]
    content = by_letter(text)
    if is_ascii and not beside[0]:  # escapes: typed as the characters that they stand for
        pieces = [(json.dumps(c)[1:-1] if ord(c) > 127 else c, by_letter(c).types()[0]) for c in raw]
        kinds = b"".join(bytes((kind,)) * len(piece) for piece, kind in pieces)
        content = TypedText("".join(piece for piece, _ in pieces), NOISE, find_runs(kinds))
    for write in WRITERS:
        written = write(str(content))
        typed, lost = type_tool_call(content, written, write, CALL, THOUGHT)
        assert typed == written and typed.semantic_type == NOISE and not typed.is_guessed
        assert typed.types() == by_letter(written).types()
        assert lost == 0


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_same_text_in_several_places_is_told_apart(write, which):
    rows = [{"name": "bash", "arguments": {"b": "ls", "a": "ls"}}, {"name": "ls", "arguments": {"a": ["ls"]}}]
    text = json.dumps(rows)
    place = [m for m in range(len(text)) if text.startswith("ls", m)][which]
    typed, lost = type_tool_call(part(text, place, place + 2), write(text), write)
    places = [m for m in range(len(typed)) if typed.startswith("ls", m)]
    expected = {reordered: [1, 0, 2]}.get(write, [0, 1, 2])[which]
    assert [m for m in places if LANDMARK in typed.types()[m : m + 2]] == [places[expected]]
    assert typed.types().count(LANDMARK) == 2 and lost == 0


@pytest.mark.parametrize(
    "write, pattern, expected",
    [
        (as_json, '"a": "x"', '<call>\n{"name": "go", "arguments": {["a": "x"], "b": 2}}\n</call>'),
        (as_tags, '"a": "x"', "<fn=go><arg=[a>x]</arg><arg=b>2</arg>"),
        (reordered, '"b": 2', 'go:{"a": "x", ["b": 2]}'),
        (
            as_json,
            '"arguments": {"a": "x", "b": 2}',
            '<call>\n{"name": "go", ["arguments": {"a": "x", "b": 2}]}\n</call>',
        ),
        (as_tags, '"arguments": {"a": "x", "b": 2}', "<fn=go><arg=[a>x</arg><arg=b>2]</arg>"),
        (as_json, "2", '<call>\n{"name": "go", "arguments": {"a": "x", "b": [2]}}\n</call>'),
        (as_tags, "2", "<fn=go><arg=a>x</arg><arg=b>[2]</arg>"),
    ],
)
def test_what_joins_names_and_values(write, pattern, expected):
    """It keeps its type as far as it is the same, or stands within the part."""
    text = '{"name": "go", "arguments": {"a": "x", "b": 2}}'
    start = text.index(pattern)
    typed, lost = type_tool_call(part(text, start, start + len(pattern)), write(text), write)
    assert (shown(typed), lost) == (expected, 0)


def test_a_call_that_is_written_twice():
    text = '{"name": "go", "arguments": {"a": "x"}}'
    typed, lost = type_tool_call(part(text, text.index("x"), text.index("x") + 1), text * 2, lambda text: text * 2)
    assert shown(typed) == text.replace("x", "[x]") * 2 and lost == 0


def test_compact_json_stays_one_part():
    text = '{"name":"go","arguments":{"a":"x","b":2}}'
    typed, lost = type_tool_call(part(text, text.index('"a"'), text.index("}}")), as_json(text), as_json)
    assert shown(typed) == '<call>\n{"name": "go", "arguments": {["a": "x", "b": 2]}}\n</call>' and lost == 0


@pytest.mark.parametrize("write, lost", [(as_json, 0), (as_tags, 1)])
def test_parts_that_do_not_come_out_are_counted(write, lost):
    text = '{"name": "go", "id": "x", "arguments": {"a": "x"}}'
    written = write(text)
    typed, number = type_tool_call(part(text, text.index('"id"'), text.index(', "arg')), written, write)
    assert number == lost and (LANDMARK in typed.types()) == (not lost)


class TestWithoutMarks:
    """Formatters that cannot read the marked call: only what stands in one place is found."""

    @staticmethod
    def only(*known):
        def write(text):
            if text not in known:
                raise ValueError
            return as_tags(text)

        return write

    def test_what_stands_there_once_is_found(self):
        text = json.dumps({"name": "go", "arguments": {"a": 'say "hello"\n', "b": "x"}})
        start = text.index("say")
        content = part(text, start, text.index('", "b"'))
        typed, lost = type_tool_call(content, as_tags(text), self.only(text))
        assert (shown(typed), lost) == ('<fn=go><arg=a>[say "hello"\n]</arg><arg=b>x</arg>', 0)

    def test_what_stands_there_twice_is_not(self):
        text = json.dumps({"name": "go", "arguments": {"a": "xy", "b": "xy"}})
        start = text.index("xy")
        typed, lost = type_tool_call(part(text, start, start + 2), as_tags(text), self.only(text))
        assert typed.is_uniform and lost == 1

    @pytest.mark.parametrize("value", ["\U000f0001", "7315" + "0" * 12])
    def test_a_call_that_holds_marks_itself(self, value):
        text = json.dumps({"name": "go", "arguments": {"a": value, "b": "xy"}}, ensure_ascii=False)
        typed, lost = type_tool_call(part(text, text.index("xy"), text.index("xy") + 2), as_tags(text), as_tags)
        assert shown(typed) == f"<fn=go><arg=a>{value}</arg><arg=b>[xy]</arg>" and lost == 0

    @pytest.mark.parametrize("write", [lambda text: "nothing of it", lambda text: text[::-1], lambda text: "xy xy"])
    def test_any_other_formatter(self, write):
        text = '{"name": "go", "arguments": {"a": "xy"}}'
        content = part(text, text.index("xy"), text.index("xy") + 2)
        typed, lost = type_tool_call(content, write(text), write)
        assert typed == write(text) and typed.is_uniform and lost == 1


def test_long_calls_take_no_time():
    arguments = {f"a{number}": f"α{number} ls\n" for number in range(2_000)} | {"file": "ls α\n" * 20_000}
    content = by_letter(json.dumps({"name": "go", "arguments": arguments}, ensure_ascii=False))
    began = time.process_time()
    written = reordered(str(content))
    typed, lost = type_tool_call(content, written, reordered)
    assert time.process_time() - began < 3
    assert typed.types() == by_letter(written).types() and lost == 0
