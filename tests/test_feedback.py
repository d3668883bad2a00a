"""Which labels are trained around the feedback marker."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsa_factory import FeedbackConfig
from hsa_factory.feedback import (
    IGNORE_INDEX,
    EncodedMessage,
    Reason,
    apply_loss_mask,
    find_markers,
    mask_labels,
    untrained_spans,
)


MARKER = 7


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


# -- whole samples, message by message -------------------------------------------------------------------------

ROLES = {"s": "system", "u": "user", "o": "observation", "a": "assistant", "f": "function"}


def conversation(text):
    """Read "u:1 2 | a:F 3 | a0:4": role, weight where it is 0, and tokens; F is the marker."""
    messages = []
    for part in text.split("|"):
        head, tokens = part.strip().split(":")
        ids = [MARKER if token == "F" else 10 + int(token) for token in tokens.split()]
        messages.append(EncodedMessage(ids, ROLES[head[0]], 0 if head.endswith("0") else 1))
    return messages


def outcome(text, **options):
    """Return what is trained, as the reasons' first letters and dots for trained tokens, message by message."""
    messages, config = conversation(text), FeedbackConfig(**options)
    spans = untrained_spans(messages, find_markers(messages, MARKER, config), config)
    rows = []
    for message, parts in zip(messages, spans):
        row = ["."] * len(message.token_ids)
        for start, stop, reason in parts:
            assert 0 <= start < stop <= len(row) and set(row[start:stop]) == {"."}
            row[start:stop] = reason[0] * (stop - start)
        rows.append("".join(row))
    return " ".join(rows)


TWO_FAILURES = "u:1 | a:2 | u:F | a:3 | u:4 | a:5 | u:F 6 | a:7"


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        (TWO_FAILURES, {}, "b b b . . . .. ."),
        (TWO_FAILURES, {"occurrence": "last"}, "b b b b b b b. ."),
        (TWO_FAILURES, {"occurrence": "every"}, "b b b . . f .. ."),
        (TWO_FAILURES, {"train": "recovery"}, ". f . . . f .. ."),
        # a reply that corrects one failure and fails again
        ("u:1 | a:2 | u:F | a:3 | u:F | a:4", {"occurrence": "every"}, "b b b f . ."),
        ("u:1 | a:2 | u:F | a:3 | u:F | a:4", {"train": "recovery"}, ". f . f . ."),
        # the marker inside a reply
        ("u:1 | a:2 F 3 | u:4 | a:5", {"occurrence": "every"}, "b bb. . ."),
        ("u:1 | a:2 F 3 | u:F | a:5", {"occurrence": "every"}, "b bbf . ."),
        ("u:1 | a:2 F 3 F 4", {}, "b bb..."),
        ("u:1 | a:2 F 3 F 4", {"occurrence": "every"}, "b bbff."),
        ("u:1 | a:2 F 3 F 4", {"occurrence": "last"}, "b bbbb."),
        ("u:1 | a:2 F 3 | u:4 | a:5 F 6", {"occurrence": "every"}, "b bb. . ff."),
        ("u:1 | a:2 F 3 | u:4 | a:5", {"train": "recovery"}, ". ... . ."),
        # several in one message, at its start and its end
        ("u:1 | a:2 | u:3 F 4 F | a:5", {"occurrence": "every"}, "b b bb.. ."),
        ("u:1 | a:2 | u:3 F 4 F | a:5", {"occurrence": "last"}, "b b bbbb ."),
        ("u:1 | a:2 | u:3 F 4 F | a:5", {"train": "recovery"}, ". f .... ."),
        # the last message
        ("u:1 | a:2 F", {"occurrence": "every"}, "b bb"),
        ("u:F | a:2", {"train": "recovery"}, ". ."),
        ("u:F | a:2", {"occurrence": "every"}, "b ."),
        # tool calls and observations
        ("u:1 | f:2 | o:F | f:3 | o:4 | a:5", {"occurrence": "every"}, "b b b . . ."),
        ("u:1 | f:2 | o:F | f:3 | o:F | a:5", {"train": "recovery"}, ". f . f . ."),
        # scope
        ("u:F | f:2 | o:F | f:3", {"scope": "observation"}, "b b b ."),
        ("s:F | u:1 | a:2 | u:F | a:3", {"scope": "user"}, "b b b b ."),
        ("s:F | u:1 | a:2 | u:F | a:3", {"scope": "system"}, "b . . . ."),
        ("u:F | a:1 F 2", {"scope": "assistant"}, "b bb."),
        ("u:1 | a:2 | u:F | a:3 | o:F | a:4", {"scope": "observation", "train": "recovery"}, ". . . f . ."),
        ("u:1 | a:F 2 | u:F | a:3", {"scope": "function"}, ". .. . ."),
        # weights, which need no marker
        ("u:1 | a0:2 3 | u:4 | a:5", {}, ". ww . ."),
        ("u0:1 | a:2", {"train": "recovery"}, "w ."),
        ("u:1 | a0:2 | u:F | a0:3 4", {"occurrence": "every"}, "b w b ww"),
    ],
)
def test_rules(text, options, expected):
    assert outcome(text, **options) == expected


def test_without_feedback_only_weights_count():
    messages = conversation("u:1 | a0:2 | u:F | a:3")
    spans = untrained_spans(messages, find_markers(messages, None, None), None)
    assert spans == [[], [(0, 1, Reason.WEIGHT)], [], []]


messages_strategy = st.lists(
    st.tuples(
        st.lists(st.sampled_from([1, 2, MARKER]), max_size=4),
        st.lists(st.sampled_from([1, 2, MARKER]), max_size=4),
        st.sampled_from(["user", "observation"]),
        st.sampled_from(["assistant", "function"]),
        st.sampled_from([0, 1, 1, 1]),
    ),
    min_size=1,
    max_size=5,
).map(
    lambda turns: [
        message
        for prompt, reply, prompt_role, reply_role, weight in turns
        for message in (EncodedMessage(prompt, prompt_role), EncodedMessage(reply, reply_role, weight))
    ]
)
configs = st.one_of(
    st.builds(
        FeedbackConfig,
        occurrence=st.sampled_from(["first", "last", "every"]),
        scope=st.sampled_from([None, "user", "observation", "assistant", "function"]),
    ),
    st.builds(FeedbackConfig, train=st.just("recovery"), scope=st.sampled_from([None, "user", "observation"])),
)


@given(messages_strategy, configs)
def test_rules_on_the_flat_sample(messages, config):
    """An oracle that knows tokens and their messages only, and asks each token by itself."""
    flat = [(index, token) for index, message in enumerate(messages) for token in message.token_ids]
    markers = [
        place
        for place, (index, token) in enumerate(flat)
        if token == MARKER and (config.scope is None or messages[index].role == config.scope)
    ]
    marked_messages = {flat[place][0] for place in markers}

    def is_trained(place, index):
        is_reply = messages[index].role in ("assistant", "function")
        if messages[index].weight == 0:
            return False
        if not markers:
            return True
        if config.train == "recovery":
            return not (is_reply and index + 1 in marked_messages)
        if config.occurrence == "last":
            return place > markers[-1]
        if place <= markers[0]:
            return False
        ahead = [other for other in markers if other >= place and flat[other][0] <= index + 1]
        return not (config.occurrence == "every" and is_reply and ahead)

    expected = [is_trained(place, index) for place, (index, _) in enumerate(flat)]
    spans = untrained_spans(messages, find_markers(messages, MARKER, config), config)
    actual = []
    for message, parts in zip(messages, spans):
        row = [True] * len(message.token_ids)
        for start, stop, _ in parts:
            row[start:stop] = [False] * (stop - start)
        actual += row
    assert actual == expected


@given(messages_strategy, configs)
def test_features_without_messages_agree_where_labels_show_the_replies(messages, config):
    """`mask_labels` reads the messages off the labels: the same result on the replies' labels."""
    messages = [
        EncodedMessage([1, *message.token_ids], message.role) for message in messages
    ]  # no empty message: labels could not show it
    ids = [token for message in messages for token in message.token_ids]
    labels = [50 if message.is_reply else IGNORE_INDEX for message in messages for _ in message.token_ids]
    if config.scope is not None:
        with pytest.raises(ValueError, match="feedback.scope needs to know which message"):
            mask_labels(labels, ids, MARKER, config)
        return

    expected, start = list(labels), 0
    for message, parts in zip(messages, untrained_spans(messages, find_markers(messages, MARKER, config), config)):
        for first, stop, _ in parts:
            expected[start + first : start + stop] = [IGNORE_INDEX] * (stop - first)
        start += len(message.token_ids)
    assert mask_labels(labels, ids, MARKER, config) == expected
