"""Types in the body of a chat request: read before vLLM leaves them out, put back to what the template gets."""

import pytest

from hsa_factory.semantics import SemanticType
from hsa_factory.vllm.server.given_types import GivenTypes, put_types, read_given
from hsa_factory.vllm.types import InvalidTypes


GLOBAL, LANDMARK, NOISE = SemanticType


def user(content="go", **more):
    return {"role": "user", "content": content, **more}


def part(text, **more):
    return {"type": "text", "text": text, **more}


def test_types_of_messages_and_parts():
    parts = [part("a"), part("b", semantic_type=2), {"type": "image_url", "image_url": {"url": "x"}}, "c"]
    given = read_given({"messages": [user(semantic_type="noise"), user(), user(parts, semantic_type="KEY_EVENT")]})
    assert given == [
        GivenTypes(NOISE),
        GivenTypes(),
        GivenTypes(LANDMARK, (None, NOISE, None, None), ("a", "b", None, "c")),
    ]


@pytest.mark.parametrize("body", [None, 3, [], {}, {"messages": None}, {"messages": "x"}, {"messages": 4}])
def test_bodies_without_messages_are_left_to_vllm(body):
    assert read_given(body) == []


def test_messages_that_are_none_are_left_to_vllm():
    assert read_given({"messages": [None, "x", user(None), user([None, 3])]}) == [GivenTypes()] * 4


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"messages": [user(), user(semantic_type="LOUD")]},
            r"messages\[1\].semantic_type: Unknown semantic type 'LOUD'",
        ),
        ({"messages": [user(semantic_type="")]}, r"messages\[0\].semantic_type"),
        ({"messages": [user(semantic_type=True)]}, r"messages\[0\].semantic_type"),
        ({"messages": [user(semantic_type={"a": [1]})]}, r"messages\[0\].semantic_type"),
        ({"messages": [user([part("a"), part("b", semantic_type=7)])]}, r"messages\[0\].content\[1\].semantic_type"),
    ],
)
def test_what_is_wrong_is_named(body, message):
    with pytest.raises(InvalidTypes, match=message):
        read_given(body)


def test_types_are_put_to_messages_and_to_parts():
    parts = [part("a"), part("b")]
    given = read_given({"messages": [user(semantic_type=1), user([part("a"), part("b", semantic_type=2)])]})
    typed = put_types([user(), user(parts)], given)
    assert typed == [user(semantic_type="LANDMARK"), user([part("a"), part("b", semantic_type="NOISE")])]
    assert "semantic_type" not in parts[1]


def test_parts_that_vllm_joins_become_spans():
    given = read_given({"messages": [user([part("ab", semantic_type=0), part(""), part("cde", semantic_type=2)])]})
    (typed,) = put_types([user("ab\n\ncde")], given)
    assert typed["semantic_spans"] == [
        {"start": 0, "end": 2, "semantic_type": "GLOBAL"},
        {"start": 4, "end": 7, "semantic_type": "NOISE"},
    ]


@pytest.mark.parametrize("content", ["ab", "x\nb", [part("a")], None])
def test_parts_that_cannot_be_followed_are_refused(content):
    given = read_given({"messages": [user([part("a"), part("b", semantic_type=2)])]})
    with pytest.raises(InvalidTypes, match=r"messages\[0\].content: a part has a semantic_type"):
        put_types([user(content)], given)


def test_messages_that_cannot_be_followed_are_refused():
    with pytest.raises(InvalidTypes, match="2 were sent, and the chat template gets 1"):
        put_types([user()], [GivenTypes(), GivenTypes()])
