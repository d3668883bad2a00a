"""Names, aliases and numbers of the semantic types."""

import pytest

from hsa_factory import SemanticType


GLOBAL, LANDMARK, NOISE = SemanticType


def test_numbers_are_those_of_semantic_ids():
    assert [(member.name, int(member)) for member in SemanticType] == [("GLOBAL", 0), ("LANDMARK", 1), ("NOISE", 2)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GLOBAL", GLOBAL),
        ("GLOBAL_CONDITION", GLOBAL),
        ("LANDMARK", LANDMARK),
        ("KEY_EVENT", LANDMARK),
        ("NOISE", NOISE),
        ("PROCESS_NOISE", NOISE),
    ],
)
def test_names_in_any_case(name, expected):
    for written in (name, name.lower(), name.title(), f" {name}\n"):
        assert SemanticType.parse(written) is expected


@pytest.mark.parametrize("expected", list(SemanticType))
def test_numbers(expected):
    for written in (int(expected), float(expected), str(int(expected)), expected):
        assert SemanticType.parse(written) is expected


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        3,
        -1,
        0.5,
        float("nan"),
        "",
        "3",
        "01",
        "²",
        "GLOBALS",
        "GLOBAL CONDITION",
        b"GLOBAL",
        [0],
        {},
    ],
)
def test_anything_else_is_refused_by_value_with_what_is_allowed(value):
    with pytest.raises(ValueError) as error:
        SemanticType.parse(value)
    message = str(error.value)
    assert repr(value) in message
    for name in ("GLOBAL", "GLOBAL_CONDITION", "LANDMARK", "KEY_EVENT", "NOISE", "PROCESS_NOISE", "0 to 2"):
        assert name in message
