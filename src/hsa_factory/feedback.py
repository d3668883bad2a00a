"""Which labels are trained: what the feedback marker and the messages' weights keep out of the loss, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from .config import FeedbackConfig


IGNORE_INDEX = -100
"""The label that the loss leaves out, as everywhere in transformers."""

REPLIES = ("assistant", "function")  # roles of the messages that a model learns to write


class Reason(StrEnum):
    """Why a token is not trained."""

    ROLE = "role"  # of a message that the model only reads
    HISTORY = "history"  # an earlier reply, with mask_history
    BEFORE_MARKER = "before marker"  # the marker that counts, or before it
    FAILED = "failed"  # a reply that the next message answers with a marker
    WEIGHT = "weight"  # of a message with weight 0
    MEDIA = "media"  # stands for a part of an image, a video or an audio clip
    PADDING = "padding"
    RECORDED = "feedback or weight"  # one of these: in data whose messages are not known


Span = tuple[int, int, Reason]  # start and stop, exclusive, within a message


@dataclass(frozen=True)
class EncodedMessage:
    """One message of a whole sample.

    Attributes:
        token_ids: Its ids, those that the template puts around it included.
        role: One of `ROLES`.
        weight: 0 keeps it out of the loss; None is as 1.
    """

    token_ids: Sequence[int]
    role: str
    weight: float | None = 1

    @property
    def is_reply(self) -> bool:
        """Whether the model learns to write it."""
        return self.role in REPLIES


def find_markers(
    messages: Sequence[EncodedMessage], marker_id: int | None, config: FeedbackConfig | None
) -> list[list[int]]:
    """Return the places of the markers that count, message by message: those in messages of the role `scope`."""
    if config is None:
        return [[] for _ in messages]
    return [
        _places(message.token_ids, marker_id) if config.scope in (None, message.role) else [] for message in messages
    ]


def deciding_markers(markers: Sequence[Sequence[int]], config: FeedbackConfig | None) -> list[tuple[int, int]]:
    """Return (message, place) of the markers that something is decided by: the one that counts, or all of them.

    Args:
        markers: From `find_markers`.
        config: None: none are.
    """
    places = [(index, place) for index, message_places in enumerate(markers) for place in message_places]
    if config is not None and config.train == "after" and config.occurrence != "every":
        return places[:1] if config.occurrence == "first" else places[-1:]
    return places


def untrained_spans(
    messages: Sequence[EncodedMessage], markers: Sequence[Sequence[int]], config: FeedbackConfig | None
) -> list[list[Span]]:
    """Decide what the loss leaves out, besides what the role does. Without a marker only weights decide.

    With ``train: after``, the marker that counts and all before it is left out, whatever its role. With ``occurrence:
    every`` that is the first marker, and after it everything in a reply that another marker ends is left out too: one
    in the same reply, or any in the next message. With ``train: recovery`` exactly the replies are left out, whole,
    whose next message holds a marker; markers elsewhere mean nothing.

    Args:
        messages: All messages of a sample, neither truncated nor packed, in order.
        markers: From `find_markers`.
        config: None: no feedback.

    Returns:
        The spans of each message, ascending and apart. An empty one stands at the end of a reply: it says why the stop
        token is not trained, where that belongs to what follows.
    """
    spans: list[list[Span]] = [[] for _ in messages]
    marked = [index for index, places in enumerate(markers) if places]
    if config is not None and marked:
        if config.train == "recovery":
            _mask_failed(spans, messages, markers)
        else:
            _mask_before(spans, messages, markers, marked, config.occurrence)

    for index, message in enumerate(messages):
        if message.weight == 0:
            spans[index] = [(0, len(message.token_ids), Reason.WEIGHT)]

    return spans


def _mask_failed(
    spans: list[list[Span]], messages: Sequence[EncodedMessage], markers: Sequence[Sequence[int]]
) -> None:
    for index, message in enumerate(messages[:-1]):
        if message.is_reply and markers[index + 1]:
            spans[index].append((0, len(message.token_ids), Reason.FAILED))


def _mask_before(
    spans: list[list[Span]],
    messages: Sequence[EncodedMessage],
    markers: Sequence[Sequence[int]],
    marked: list[int],
    occurrence: str,
) -> None:
    which = -1 if occurrence == "last" else 0
    boundary = marked[which]
    place = markers[boundary][which]
    for index in range(boundary):
        spans[index].append((0, len(messages[index].token_ids), Reason.BEFORE_MARKER))
    spans[boundary].append((0, place + 1, Reason.BEFORE_MARKER))
    if occurrence != "every":
        return

    for index in range(boundary, len(messages)):
        if not messages[index].is_reply:
            continue
        start = place + 1 if index == boundary else 0
        ends = [other + 1 for other in markers[index] if other >= start]
        if index + 1 < len(messages) and markers[index + 1]:
            ends = [len(messages[index].token_ids)]
        if ends and start <= ends[-1]:
            spans[index].append((start, ends[-1], Reason.FAILED))


def mask_labels(labels: Sequence[int], input_ids: Sequence[int], marker_id: int, config: FeedbackConfig) -> list[int]:
    """Mask the labels of a sample whose messages are not known: hand-made, or tokenized elsewhere.

    A run of labels is taken for a reply, what stands between two runs for the message that answers the first.

    Args:
        labels: Labels of one sample that is neither truncated nor packed.
        input_ids: Token ids, as many as labels.
        marker_id: Id of the marker.
        config: Which marker counts, and what happens without one.

    Returns:
        The labels, `IGNORE_INDEX` where the configuration says so. Without a marker they are unchanged, or all
        masked if `config.missing` is ``drop`` (a batch cannot drop a sample).

    Raises:
        ValueError: If there is no marker and `config.missing` is ``error``, if `config.scope` is given, or if the
            lengths differ.
    """
    if len(labels) != len(input_ids):
        raise ValueError(f"{len(labels)} labels do not fit {len(input_ids)} input_ids.")
    if config.scope is not None:
        raise ValueError(
            "feedback.scope needs to know which message a token stands in: prepare the data through the integration, "
            "or leave scope out."
        )

    messages = _split_by_labels(labels, input_ids)
    markers = find_markers(messages, marker_id, config)
    if not any(markers):
        if config.missing == "error":
            raise ValueError(f"A sample has no {config.token} (feedback.missing is 'error').")
        return list(labels) if config.missing == "train" else [IGNORE_INDEX] * len(labels)

    masked, start = list(labels), 0
    for message, spans in zip(messages, untrained_spans(messages, markers, config)):
        for first, last, _ in spans:
            masked[start + first : start + last] = [IGNORE_INDEX] * (last - first)
        start += len(message.token_ids)
    return masked


def apply_loss_mask(labels: Sequence[int], loss_mask: Sequence[int]) -> list[int]:
    """Mask the labels where the recorded decision says so.

    Args:
        labels: Labels of one sample or packed row.
        loss_mask: 1 where a token may be trained, 0 where the feedback rules or a weight keep it out of the loss.

    Raises:
        ValueError: If the lengths differ.
    """
    if len(labels) != len(loss_mask):
        raise ValueError(f"{len(labels)} labels do not fit a loss_mask of {len(loss_mask)}.")

    return [label if keep else IGNORE_INDEX for label, keep in zip(labels, loss_mask)]


def _places(token_ids: Sequence[int], marker_id: int | None) -> list[int]:
    if marker_id not in token_ids:
        return []
    return [place for place, token in enumerate(token_ids) if token == marker_id]


def _split_by_labels(labels: Sequence[int], input_ids: Sequence[int]) -> list[EncodedMessage]:
    messages, start = [], 0
    for stop in range(1, len(labels) + 1):
        is_reply = labels[start] != IGNORE_INDEX
        if stop == len(labels) or (labels[stop] != IGNORE_INDEX) != is_reply:
            messages.append(EncodedMessage(input_ids[start:stop], "assistant" if is_reply else "user"))
            start = stop
    return messages
