"""Text that knows where its characters come from: every method does what `str` does, and keeps account."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsa_factory.training.traced_template import render
from hsa_factory.training.traced_text import Run, TracedText, UntraceableTemplate, concat, join, plain, runs_of
from hsa_factory.training.traced_values import Sources, dump_json, trace_messages


TEXTS = st.text(alphabet="ab \n<>/\u3000é\r", max_size=30)
PIECES = st.text(alphabet="ab \n", min_size=1, max_size=2)


def traced(text):
    return TracedText(text, [Run(len(text), 0, 0, 1)])


def sources_of(text):
    """Return the place that each character says it comes from."""
    return [run.offset + run.step * k for run in runs_of(text) for k in range(run.length)]


def same(found, expected, original):
    """Check a result of a method that takes characters out: texts equal, characters those of their places."""
    assert plain(found) == expected and sum(run.length for run in runs_of(found)) == len(expected)
    if isinstance(found, TracedText):
        assert "".join(original[place] for place in sources_of(found)) == expected
        assert sources_of(found) == sorted(sources_of(found))


@given(TEXTS, PIECES, st.integers(-1, 3))
def test_cutting(text, piece, number):
    own = traced(text)
    for method, args in [
        ("split", (piece, number)),
        ("split", (None, number)),
        ("rsplit", (piece, number)),
        ("rsplit", (None, number)),
        ("splitlines", ()),
        ("splitlines", (True,)),
        ("partition", (piece,)),
        ("rpartition", (piece,)),
    ]:
        found, expected = getattr(own, method)(*args), getattr(text, method)(*args)
        assert list(map(plain, found)) == list(expected)
        for part, other in zip(found, expected):
            same(part, other, text)
    for method in ("strip", "lstrip", "rstrip"):
        same(getattr(own, method)(), getattr(text, method)(), text)
        same(getattr(own, method)(piece), getattr(text, method)(piece), text)
    for method in ("removeprefix", "removesuffix"):
        same(getattr(own, method)(piece), getattr(text, method)(piece), text)
    assert list(own) == list(text) and str(own) is own and hash(own) == hash(text)


@given(TEXTS, st.integers(-5, 5) | st.none(), st.integers(-5, 5) | st.none(), st.sampled_from([None, 1, 2, -1]))
def test_slices(text, start, stop, step):
    found = traced(text)[start:stop:step]
    assert plain(found) == text[start:stop:step]
    assert [text[place] for place in sources_of(found)] == list(text[start:stop:step])


@given(TEXTS, PIECES, st.text(alphabet="xy", max_size=3), st.integers(-1, 3))
def test_replacing(text, old, new, number):
    found = traced(text).replace(old, new, number)
    assert plain(found) == text.replace(old, new, number)
    assert sources_of(found) == sorted(sources_of(found))
    kept = [(char, text[place]) for char, place in zip(plain(found), sources_of(found)) if char not in "xy"]
    assert all(char == other for char, other in kept)


@given(TEXTS, TEXTS)
def test_joining(one, two):
    assert plain(traced(one) + two) == one + two == plain(one + traced(two)) if two else True
    assert plain(join(one, [traced(two), two])) == one.join([two, two])
    assert plain(traced(one) * 2) == one * 2 == plain(concat([traced(one), one]))
    for method in ("upper", "lower", "swapcase"):
        if len(getattr(one, method)()) == len(one):
            assert plain(getattr(traced(one), method)()) == getattr(one, method)()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
FORMS = [{}, {"indent": 4}, {"ensure_ascii": True}, {"separators": (",", ":")}, {"sort_keys": True, "indent": 2}]


@given(VALUES, st.sampled_from(FORMS))
@settings(max_examples=25)
def test_json_is_what_json_dumps_writes(value, form):
    (message,) = trace_messages([{"role": "tool", "content": "", "data": value}], Sources())
    found = dump_json(message["data"], **form)
    assert plain(found) == json.dumps(value, **{"ensure_ascii": False, **form})
    assert sum(run.length for run in runs_of(found)) == len(found)


MESSAGES = [{"role": "user", "content": " a <b> é "}, {"role": "assistant", "content": "yes\nno"}]


@pytest.mark.parametrize(
    "expression",
    [
        "m.content|trim",
        "m.content|upper|lower|capitalize",
        "m.content|replace('a', 'bb')",
        "m['content'].split('<')|join('-')",
        "m.content|indent(2)",
        "m.content|tojson",
        "m|tojson(indent=2)",
        "m.content ~ 3 ~ m.role",
        "m.content|string|safe",
        "(m.content|list)|join",
        "m.content|first ~ m.content|last ~ m.content[::-1]",
        "messages|map(attribute='content')|join(',')",
        "m.content|truncate(5)",
        "m.content",
        "{'x': m.content}|tojson",
        "m.content.splitlines()|join('|')",
    ],
)
def test_a_template_renders_what_transformers_renders(expression, tiny_tokenizer):
    template = f"{{% for m in messages %}}<{{{{ {expression} }}}}>\n{{% endfor %}}"
    official = tiny_tokenizer.apply_chat_template(MESSAGES, chat_template=template, tokenize=False)
    rendering = render(template, MESSAGES, None, {})
    assert rendering.text == official
    assert len(rendering.blocks) == len(official) and (rendering.blocks >= 0).all()
    assert (rendering.leaves >= 0).any()


@pytest.mark.parametrize(
    ("expression", "what"),
    [
        ("'%s' % m.content", "%"),
        ("'%s' % (m.content,)", "%"),
        ("'{}'.format(m.content)", "a format string"),
        ("m.content.center(40)", "center"),
        ("m.content|e", "the filter e"),
        ("m.content|urlencode", "encode"),
        ("m.content|title", "the filter title"),
    ],
)
def test_what_cannot_be_followed_is_refused(expression, what):
    with pytest.raises(UntraceableTemplate, match=what):
        render(f"{{% for m in messages %}}{{{{ {expression} }}}}{{% endfor %}}", MESSAGES, None, {})


def test_a_text_can_be_pickled():
    import pickle

    text = traced("abc")[1:]
    assert pickle.loads(pickle.dumps(text)).runs == text.runs
