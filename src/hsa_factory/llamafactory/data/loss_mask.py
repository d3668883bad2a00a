"""What feedback and weights keep out of the loss, marked on the ids of a whole sample before LLaMA-Factory cuts it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ...config import FeedbackConfig
from ...feedback import REPLIES, EncodedMessage, Reason, Span, deciding_markers, find_markers, untrained_spans
from ...typed.ids import TypedTokenId, mark_untrained, tag_id
from .template import ALWAYS_KEY, WEIGHT_KEY, Pairs
from .weighing import Weighing


DECIDING = "deciding marker"  # tag of the markers that something was decided by, to see whether the cut leaves them


@dataclass(frozen=True)
class MaskedPairs:
    """The ids of a whole sample, marked.

    Attributes:
        pairs: Prompt and response ids of each turn.
        has_marker: Whether there is a feedback marker that counts.
        is_masked: Whether feedback or a weight keeps anything out of the loss.
        is_weighed: Whether some ids carry a weight.
        deciding: Number of markers that something was decided by; each is tagged.
    """

    pairs: Pairs
    has_marker: bool
    is_masked: bool
    deciding: int
    is_weighed: bool = False


def mask_pairs(
    pairs: Pairs,
    messages: Sequence[dict[str, Any]],
    marker_id: int | None,
    config: FeedbackConfig | None,
    eos_follows: bool,
    train_on_prompt: bool,
    weighing: Weighing = Weighing(),
) -> MaskedPairs:
    """Mark what is not trained, and weigh the rest where messages say so.

    Args:
        pairs: Prompt and response ids of each turn, typed; the first begins with the system prompt.
        messages: The messages that they were made of, the system prompt not among them.
        marker_id: Id of the feedback marker; None without feedback.
        config: None: only weights decide.
        eos_follows: Whether the label that ends a reply stands at the first id of the next prompt.
        train_on_prompt: Whether prompts are trained, too.
        weighing: What decides which ids of a message its weight holds for.
    """
    ids = [list(side) for side in chain.from_iterable(pairs)]
    roles: list[str] = [message["role"] for message in messages]
    weights = [_weight_of(message) for message in messages]
    is_weighed = any(weights)
    if is_weighed:
        ids = weighing.weigh(ids, roles, weights, eos_follows, train_on_prompt)
    weights = [
        weight if role in REPLIES or train_on_prompt or weight else None for role, weight in zip(roles, weights)
    ]
    if config is not None and config.scope is not None and marker_id is not None and marker_id in ids[0]:
        end = _system_end(ids[0], messages[0]["content"].count(config.token), marker_id)
        ids[:1] = [ids[0][:end], ids[0][end:]]
        roles, weights = ["system", *roles], [weights[0], *weights]

    encoded = [EncodedMessage(*facts) for facts in zip(ids, roles, weights)]
    markers = find_markers(encoded, marker_id, config)
    spans = untrained_spans(encoded, markers, config)
    if not any(start < stop or eos_follows for parts in spans for start, stop, _ in parts):
        return MaskedPairs(_joined(ids, len(messages)), any(markers), False, 0, is_weighed)

    masked = [_mark(side, parts) for side, parts in zip(ids, spans)]
    if eos_follows:
        for k, reply in enumerate(encoded[:-1]):
            reason = spans[k][-1][2] if reply.is_reply and spans[k] else ""  # a span may be empty, as the reply may
            if reason == Reason.WEIGHT or (reason == Reason.FAILED and markers[k + 1]):
                masked[k + 1][:1] = mark_untrained(masked[k + 1][:1], reason)
    deciding = deciding_markers(markers, config)
    for k, place in deciding:
        masked[k][place] = tag_id(masked[k][place], DECIDING)
    return MaskedPairs(_joined(masked, len(messages)), any(markers), True, len(deciding), is_weighed)


def _weight_of(message: dict[str, Any]) -> float | None:
    """Return how much a message is trained; None: as its role is."""
    weight: float | None = message.get(WEIGHT_KEY)
    return None if weight == 1 and not message.get(ALWAYS_KEY) else weight


def _joined(sides: list[list[TypedTokenId]], number: int) -> Pairs:
    """Return the pairs of prompts and responses; the system prompt's ids may stand by themselves."""
    if len(sides) > number:
        sides = [sides[0] + sides[1], *sides[2:]]
    return list(zip(sides[::2], sides[1::2]))


def _system_end(first: Sequence[int], own: int, marker_id: int) -> int:
    """Return where the system prompt's markers end in the first message, whose ids begin with the prompt's.

    The last `own` markers are the message's own.
    """
    places = [place for place, token in enumerate(first) if token == marker_id]
    return places[len(places) - own - 1] + 1 if own < len(places) else 0


def _mark(ids: list[TypedTokenId], spans: list[Span]) -> list[TypedTokenId]:
    for start, stop, reason in spans:
        ids[start:stop] = mark_untrained(ids[start:stop], reason)
    return ids
