"""What of a conversation is trained, and how much: by role, weights and feedback, on the whole conversation."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from ..config import FeedbackConfig
from ..feedback import EncodedMessage, find_markers, untrained_spans
from .messages import Conversation
from .traced_text import NOWHERE


@dataclass(frozen=True)
class LossDecision:
    """What is trained.

    Attributes:
        is_trained: (tokens,) bool.
        weights: (tokens,) float64, what the loss of each is multiplied by; None: by 1.
        has_marker: Whether there is a feedback marker that counts.
    """

    is_trained: np.ndarray
    weights: np.ndarray | None
    has_marker: bool


def decide_loss(
    input_ids: list[int],
    owners: np.ndarray,
    speakers: np.ndarray,
    is_reply: np.ndarray,
    is_media: np.ndarray,
    conversation: Conversation,
    marker_id: int | None,
    feedback: FeedbackConfig | None,
    open_replies: Collection[int],
    special_ids: Collection[int],
) -> LossDecision:
    """Decide what of a whole conversation is trained.

    Args:
        input_ids: Its tokens.
        owners: (tokens,) message that each belongs to.
        speakers: (tokens,) message whose content each holds; `NOWHERE`: the template's text.
        is_reply: (tokens,) whether the model learns to write it.
        is_media: (tokens,) whether it stands for a part of an image, a video or an audio clip.
        conversation: What is known of its messages.
        marker_id: Id of the feedback marker; None without feedback.
        feedback: None: only weights decide.
        open_replies: Replies that the template ends with no token of their own.
        special_ids: Special tokens.
    """
    given = [facts.weight for facts in conversation.facts]
    is_trained = is_reply.copy()
    for message, weight in enumerate(given):
        if weight and not conversation.facts[message].is_reply:  # a weight trains what the model only reads
            is_trained |= (owners == message) & ~is_media
    markers, spans = _by_feedback(input_ids, owners, speakers, conversation, marker_id, feedback)
    for start, stop in spans:
        is_trained[start:stop] = False
    is_trained &= ~np.array([weight == 0 for weight in given])[owners]

    weights = None
    if any(weight is not None and weight not in (0, 1) for weight in given):
        weights = np.array([1.0 if not weight else weight for weight in given])[owners]
    _train_stops(input_ids, owners, conversation, open_replies, special_ids, is_trained, weights)
    if len(is_trained):
        is_trained[0] = False  # nothing stands before it from which it could be learned
    return LossDecision(is_trained, weights, markers)


def _by_feedback(
    input_ids: list[int],
    owners: np.ndarray,
    speakers: np.ndarray,
    conversation: Conversation,
    marker_id: int | None,
    feedback: FeedbackConfig | None,
) -> tuple[bool, list[tuple[int, int]]]:
    """Return whether there is a marker that counts, and what feedback leaves out."""
    if feedback is None:
        return False, []
    facts = conversation.facts
    spoken = np.where(speakers == NOWHERE, owners, speakers)
    pieces = list(_runs(spoken))
    said = [EncodedMessage(input_ids[start:stop], facts[spoken[start]].role) for start, stop in pieces]
    found = [
        start + place
        for (start, _), places in zip(pieces, find_markers(said, marker_id, feedback))
        for place in places
    ]

    sides = np.array([fact.is_reply for fact in facts])[owners]
    turns = list(_runs(sides))
    whole = [EncodedMessage(input_ids[start:stop], "assistant" if sides[start] else "user") for start, stop in turns]
    markers = [[place - start for place in found if start <= place < stop] for start, stop in turns]
    spans = untrained_spans(whole, markers, feedback)
    left_out = [(start + first, start + last) for (start, _), parts in zip(turns, spans) for first, last, _ in parts]
    return bool(found), left_out


def _train_stops(
    input_ids: list[int],
    owners: np.ndarray,
    conversation: Conversation,
    open_replies: Collection[int],
    special_ids: Collection[int],
    is_trained: np.ndarray,
    weights: np.ndarray | None,
) -> None:
    """Train the special token after a reply that the template ends with nothing else (GLM): it is what the model stops at."""
    for start, stop in _runs(owners):
        if owners[start] not in open_replies or stop == len(owners) or not is_trained[stop - 1]:
            continue
        if input_ids[stop] in special_ids and not conversation.facts[owners[stop]].is_reply:
            is_trained[stop] = True
            if weights is not None:
                weights[stop] = weights[stop - 1]


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield where each run of equal values begins and ends."""
    edges = np.flatnonzero(np.diff(values.astype(np.int64))) + 1
    bounds = [0, *edges.tolist(), len(values)]
    yield from zip(bounds[:-1], bounds[1:])
