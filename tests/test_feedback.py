"""Which labels are trained around the feedback marker."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsa_factory import FeedbackConfig
from hsa_factory.feedback import IGNORE_INDEX, apply_loss_mask, find_marker, mask_labels


MARKER = 7


@pytest.mark.parametrize(
    ("input_ids", "first", "last"),
    [
        ([], None, None),
        ([1, 2, 3], None, None),
        ([MARKER], 0, 0),
        ([MARKER, 1, 2], 0, 0),
        ([1, MARKER, 2], 1, 1),
        ([1, 2, MARKER], 2, 2),
        ([1, MARKER, 2, MARKER, 3], 1, 3),
        ((MARKER, MARKER), 0, 1),
    ],
)
def test_find_marker(input_ids, first, last):
    assert find_marker(input_ids, MARKER) == find_marker(input_ids, MARKER, "first") == first
    assert find_marker(input_ids, MARKER, "last") == last


@pytest.mark.parametrize(
    ("input_ids", "occurrence", "expected"),
    [
        ([1, 2, MARKER, 4, 5], "first", [-100, -100, -100, 13, 14]),
        ([1, 2, MARKER, 4, 5], "last", [-100, -100, -100, 13, 14]),
        ([1, MARKER, 3, MARKER, 5], "first", [-100, -100, 12, 13, 14]),
        ([1, MARKER, 3, MARKER, 5], "last", [-100, -100, -100, -100, 14]),
        ([MARKER, 2, 3, 4, 5], "first", [-100, 11, 12, 13, 14]),
        ([1, 2, 3, 4, MARKER], "first", [-100] * 5),
        ([1, 2, 3, MARKER, MARKER], "first", [-100, -100, -100, -100, 14]),
        ([1, 2, 3, MARKER, MARKER], "last", [-100] * 5),
    ],
)
def test_the_marker_and_all_before_it_are_masked(input_ids, occurrence, expected):
    labels = [10, 11, 12, 13, 14]
    assert mask_labels(labels, input_ids, MARKER, FeedbackConfig(occurrence=occurrence)) == expected
    assert labels == [10, 11, 12, 13, 14]


@pytest.mark.parametrize(("missing", "expected"), [("train", [10, -100, 12]), ("drop", [-100, -100, -100])])
def test_without_a_marker(missing, expected):
    labels = [10, -100, 12]
    masked = mask_labels(labels, [1, 2, 3], MARKER, FeedbackConfig(missing=missing))
    assert masked == expected
    assert masked is not labels


def test_without_a_marker_as_an_error():
    with pytest.raises(ValueError, match=r"no <\|mine\|> \(feedback.missing is 'error'\)"):
        mask_labels([1], [1], MARKER, FeedbackConfig(token="<|mine|>", missing="error"))
    assert mask_labels([1, 2], [MARKER, 1], MARKER, FeedbackConfig(missing="error")) == [-100, 2]


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 labels do not fit 3 input_ids"):
        mask_labels([1, 2], [1, 2, 3], MARKER, FeedbackConfig())
    with pytest.raises(ValueError, match="2 labels do not fit a loss_mask of 1"):
        apply_loss_mask([1, 2], [1])


def test_recorded_sides_decide():
    assert apply_loss_mask([5, -100, 6, 7], [0, 1, 1, 0]) == [-100, -100, 6, -100]
    assert apply_loss_mask([], []) == []


@given(
    rows=st.lists(st.tuples(st.integers(5, 9), st.integers(-100, 50)), max_size=30),
    occurrence=st.sampled_from(["first", "last"]),
    missing=st.sampled_from(["train", "drop"]),
)
def test_property(rows, occurrence, missing):
    input_ids, labels = [token for token, _ in rows], [label for _, label in rows]
    masked = mask_labels(labels, input_ids, MARKER, FeedbackConfig(occurrence=occurrence, missing=missing))
    assert len(masked) == len(labels)

    places = [index for index, token in enumerate(input_ids) if token == MARKER]
    if not places:
        assert masked == (labels if missing == "train" else [IGNORE_INDEX] * len(labels))
        return
    marker = min(places) if occurrence == "first" else max(places)
    assert set(masked[: marker + 1]) == {IGNORE_INDEX}
    assert masked[marker + 1 :] == labels[marker + 1 :]
    recorded = [int(index > marker) for index in range(len(labels))]
    assert apply_loss_mask(labels, recorded) == masked
