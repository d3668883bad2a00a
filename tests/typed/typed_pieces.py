"""Texts of several types, piece by piece, and an independent way to the type of each character."""

from hypothesis import strategies as st

from hsa_factory import SemanticType
from hsa_factory.typed.text import TypedText


GLOBAL, LANDMARK, NOISE = SemanticType
PIECES = [
    *"a e t\n .",
    "The",
    " robot",
    "fridge",
    "table. ",
    "打开",
    "冰",
    "é",
    "👩‍👧",
    "<think>",
    "<|im_end|>",
    "  ",
    "12",
]
pieces = st.tuples(st.sampled_from(PIECES) | st.just(""), st.sampled_from(SemanticType))
spans = st.lists(pieces, min_size=1, max_size=12)


def join(row):
    text = TypedText(*row[0])
    for piece in row[1:]:
        text = text + TypedText(*piece)
    return text


def by_character(text):
    return [semantic_type for start, end, semantic_type in text.spans for _ in range(start, end)]


def characters(row):
    return [semantic_type for piece, semantic_type in row for _ in piece]
