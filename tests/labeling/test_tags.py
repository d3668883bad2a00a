"""XML-like elements: nested, unclosed, stray, overlapping, with attributes, among text that is no XML."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsa_factory.labeling.tags import find_elements


def found(text, *names):
    return [text[start:end] for start, end, _, _ in find_elements(text, names)]


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ("a<t>b</t>c", ["<t>b</t>"]),
        ("<t>b</t><t></t>", ["<t>b</t>", "<t></t>"]),
        ("<t>a<t>b</t>c</t>d", ["<t>a<t>b</t>c</t>"]),  # nested: the outermost
        ("a<t>b", ["<t>b"]),  # unclosed: to the end
        ("<t>a<t>b</t>c", ["<t>a<t>b</t>c"]),
        ("b</t>c<t>d</t>", ["<t>d</t>"]),  # a stray end is text
        ('<t a="1" b>x</t >', ['<t a="1" b>x</t >']),
        ("<t\na='1'>x</t>", ["<t\na='1'>x</t>"]),
        ("<t/>x</t>", []),
        ("<T>x</T><tt>y</tt>< t>z</ t>", []),  # names are case-sensitive and whole
        ("x <t and > y <t> z </t>", ["<t and > y <t> z </t>"]),
        ("a<t>x<u>y</t>z</u>", ["<t>x<u>y</t>"]),
        ("", []),
        ("<t", []),
        ("<script>alert('<t>')</t></script>", ["<t>')</t>"]),
        ("שלום<t>冰箱 👩‍👧</t>🤖", ["<t>冰箱 👩‍👧</t>"]),
    ],
)
def test_elements(text, elements):
    assert found(text, "t") == elements


def test_elements_of_several_names_may_overlap():
    assert found("<t>x<u>y</t>z</u>", "u", "t") == ["<t>x<u>y</t>", "<u>y</t>z</u>"]


def test_the_inner_text():
    text = 'a<t n="1">b<t>c</t></t>'
    ((_, _, start, end),) = find_elements(text, ["t"])
    assert text[start:end] == "b<t>c</t>"


@pytest.mark.parametrize("name", ["Situation Analysis", "a.b", "思考", "x+"])
def test_names_are_no_patterns(name):
    assert found(f"<{name}>x</{name}> <axb>y</axb>", name) == [f"<{name}>x</{name}>"]


@given(st.lists(st.sampled_from(["<t>", "</t>", "<u>", "x", "<", ">", "<t", " 冰"]), max_size=30).map("".join))
def test_elements_are_in_order_and_begin_and_end_with_their_tags(text):
    position = 0
    for start, end, inner_start, inner_end in find_elements(text, ["t"]):
        assert position <= start < inner_start <= inner_end <= end <= len(text)
        assert text[start : start + 2] == "<t" and text[inner_start - 1] == ">"
        assert text[inner_end:end] in ("</t>", "") and (text[inner_end:end] or end == len(text))
        position = end
