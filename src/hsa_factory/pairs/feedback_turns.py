"""Which replies of a conversation feedback judged wrong, and which ones correct them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..feedback import REPLIES
from .options import PairOptions


class LeftOut(StrEnum):
    """Why feedback becomes no pair."""

    NO_MISTAKE = "there is no reply before the marker"
    NO_CORRECTION = "there is no reply after the marker"
    NO_GOOD_CORRECTION = "all replies after it are followed by a marker, too"
    FAILED = "the correction is followed by a marker, too"
    EMPTY_MISTAKE = "the mistake is empty"
    EMPTY_CORRECTION = "the correction is empty"
    SAME = "the correction is the mistake again"
    IN_A_CALL = "the marker stands inside a tool call"
    IN_A_THOUGHT = "the marker stands inside a thought (<think>)"
    MEDIA = "there are media in the mistake or in the correction"
    UNTRAINED = "the correction has weight 0"
    NO_PROMPT = "there is no message before the mistake"
    ORDER = "LLaMA-Factory does not train the conversation before the mistake"


@dataclass(frozen=True)
class Attempt:
    """A reply, or the part of one that stands before, between or after markers.

    Attributes:
        message: Place of its message in the conversation.
        start: Where it begins in the message's text.
        stop: Where it ends; spaces next to a marker belong to no attempt.
        failed: Whether feedback follows it.
    """

    message: int
    start: int
    stop: int
    failed: bool = False


@dataclass(frozen=True)
class FeedbackTurn:
    """One feedback: markers with no reply between them.

    Attributes:
        message: Place of the message that holds its first marker.
        mistake: What it judges; None: it is no reply.
        correction: What corrects it; None: nothing does.
        left_out: Why there is no pair, as far as places tell; None: there may be one.
    """

    message: int
    mistake: Attempt | None
    correction: Attempt | None
    left_out: LeftOut | None


def find_feedback(roles: Sequence[str], texts: Sequence[str], options: PairOptions) -> list[FeedbackTurn]:
    """Return the feedback in a conversation that counts, in order.

    A marker judges the reply before it, wherever it stands: in the message that answers the reply, within the reply (then
    the part before it is the mistake, and the part after it the correction), or at the start of the next reply.

    Args:
        roles: Of all messages: `assistant` and `function` are replies.
        texts: Their texts.
        options: Which markers count, and which correction is taken.
    """
    attempts: list[Attempt] = []
    markers: list[tuple[int, int]] = []  # message; attempts before it
    for event in _events(roles, texts, options):
        if isinstance(event, Attempt):
            attempts.append(event)
        elif not markers or markers[-1][1] != len(attempts):
            markers.append((event, len(attempts)))
    failed = {before - 1 for _, before in markers}
    attempts = [
        Attempt(attempt.message, attempt.start, attempt.stop, number in failed)
        for number, attempt in enumerate(attempts)
    ]
    if options.occurrence != "every":
        markers = markers[:1] if options.occurrence == "first" else markers[-1:]
    return [_turn(message, attempts[:before], attempts[before:], options.failed) for message, before in markers]


def _events(roles: Sequence[str], texts: Sequence[str], options: PairOptions) -> Iterator[Attempt | int]:
    """Yield attempts, and for each marker the place of its message."""
    for number, (role, text) in enumerate(zip(roles, texts)):
        counts = options.scope in (None, role)
        places = list(_places(text, options.token)) if counts else []
        if role not in REPLIES:
            yield from (number for _ in places)
            continue
        start = 0
        for place in places:
            piece = _stripped(text, start, place, number, after_marker=start > 0, before_marker=True)
            if piece.start < piece.stop:
                yield piece
            yield number
            start = place + len(options.token)
        yield _stripped(text, start, len(text), number, after_marker=start > 0, before_marker=False)


def _places(text: str, token: str) -> Iterator[int]:
    place = text.find(token)
    while place >= 0:
        yield place
        place = text.find(token, place + len(token))


def _stripped(text: str, start: int, stop: int, message: int, after_marker: bool, before_marker: bool) -> Attempt:
    """Return a part of a text, without the spaces between it and a marker."""
    piece = text[start:stop]
    if before_marker:
        stop = start + len(piece.rstrip())
    if after_marker:
        start = min(stop, start + len(piece) - len(piece.lstrip()))
    return Attempt(message, start, stop)


def _turn(message: int, before: Sequence[Attempt], after: Sequence[Attempt], failed: str) -> FeedbackTurn:
    if not before:
        return FeedbackTurn(message, None, None, LeftOut.NO_MISTAKE)
    mistake = before[-1]
    if not after:
        return FeedbackTurn(message, mistake, None, LeftOut.NO_CORRECTION)
    correction = after[0]
    if correction.failed and failed == "drop":
        return FeedbackTurn(message, mistake, correction, LeftOut.FAILED)
    if correction.failed and failed == "follow":
        good = next((attempt for attempt in after if not attempt.failed), None)
        return FeedbackTurn(message, mistake, good, None if good is not None else LeftOut.NO_GOOD_CORRECTION)
    return FeedbackTurn(message, mistake, correction, None)
