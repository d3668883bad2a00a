"""Spans: the one convention, (start, end, type)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsa_factory.typed.spans import decode_spans, encode_spans, fill_gaps, find_runs, shift


rows = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, 0, 1, 2])), max_size=8)


def spans_of(row):
    """Return the spans of a row of (length, type), and the type of each character; None: no span covers it."""
    spans, types = [], []
    for length, kind in row:
        if kind is not None:
            spans.append((len(types), len(types) + length, kind))
        types += [kind] * length
    return spans, types


@given(rows, st.sampled_from([0, 2, 255]))
def test_gaps_are_filled(row, rest):
    spans, types = spans_of(row)
    covered = fill_gaps(spans, len(types), rest)
    assert [kind for start, end, kind in covered for _ in range(start, end)] == [
        rest if kind is None else kind for kind in types
    ]
    assert covered and all(start < end for start, end, _ in covered) or not types
    assert [start for start, _, _ in covered] == [0, *(end for _, end, _ in covered[:-1])]


@pytest.mark.parametrize(
    "spans", [[(0, 3, 0), (2, 4, 1)], [(3, 5, 0), (0, 1, 1)], [(2, 1, 0)], [(0, 6, 0)], [(-1, 2, 0)]]
)
def test_spans_that_do_not_fit_are_refused(spans):
    with pytest.raises(ValueError, match="does not fit between"):
        fill_gaps(spans, 5, 2)


@given(rows, st.integers(0, 9))
def test_writing_and_shifting(row, by):
    spans, _ = spans_of(row)
    assert decode_spans(encode_spans(spans)) == spans
    assert shift(spans, by) == [(start + by, end + by, kind) for start, end, kind in spans]
    assert shift(shift(spans, by), -by) == spans


@given(st.binary(max_size=40) | st.lists(st.sampled_from([0, 1, 2, 3, 255]), max_size=40).map(bytes))
def test_runs_cover_everything_and_differ_from_their_neighbours(types):
    found = find_runs(types)
    assert b"".join(bytes([kind]) * (end - start) for start, end, kind in found) == types
    assert [start for start, _, _ in found] == [0, *(end for _, end, _ in found)][: len(found)]
    assert all(one[2] != other[2] for one, other in zip(found, found[1:]))
