"""What feedback and weights keep out of the loss, marked on the ids of a whole sample before LLaMA-Factory cuts it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ...config import FeedbackConfig
from ...feedback import REPLIES, EncodedMessage, Reason, Span, deciding_markers, find_markers, untrained_spans
from ...typed.ids import TypedTokenId, mark_untrained, tag_id
from .template import WEIGHT_KEY, Pairs


DECIDING = "deciding marker"  # tag of the markers that something was decided by, to see whether the cut leaves them


@dataclass(frozen=True)
class MaskedPairs:
    """The ids of a whole sample, marked.

    Attributes:
        pairs: Prompt and response ids of each turn.
        has_marker: Whether there is a feedback marker that counts.
        is_masked: Whether feedback or a weight keeps anything out of the loss.
        deciding: Number of markers that something was decided by; each is tagged.
    """

    pairs: Pairs
    has_marker: bool
    is_masked: bool
    deciding: int


def mask_pairs(
    pairs: Pairs,
    messages: Sequence[dict[str, Any]],
    marker_id: int | None,
    config: FeedbackConfig | None,
    eos_follows: bool,
    train_on_prompt: bool,
) -> MaskedPairs:
    """Mark what is not trained.

    Args:
        pairs: Prompt and response ids of each turn, typed; the first begins with the system prompt.
        messages: The messages that they were made of, the system prompt not among them.
        marker_id: Id of the feedback marker; None without feedback.
        config: None: only weights decide.
        eos_follows: Whether the label that ends a reply stands at the first id of the next prompt.
        train_on_prompt: Whether prompts are trained, too.
    """
    encoded = []
    for ids, message in zip(chain.from_iterable(pairs), messages):
        weight = message.get(WEIGHT_KEY, 1) if message["role"] in REPLIES or train_on_prompt else 1
        encoded.append(EncodedMessage(ids, message["role"], weight))
    if config is not None and config.scope is not None and marker_id in encoded[0].token_ids:
        own = messages[0]["content"].count(config.token)
        encoded[:1] = _split_system(encoded[0], own, marker_id)

    markers = find_markers(encoded, marker_id, config)
    spans = untrained_spans(encoded, markers, config)
    if not any(spans):
        return MaskedPairs(pairs, any(markers), False, 0)

    masked = [_mark(list(message.token_ids), parts) for message, parts in zip(encoded, spans)]
    if eos_follows:
        for k, message in enumerate(encoded[:-1]):
            reason = spans[k][-1][2] if message.is_reply and spans[k] else None
            if reason == Reason.WEIGHT or (reason == Reason.FAILED and markers[k + 1]):
                masked[k + 1][:1] = mark_untrained(masked[k + 1][:1], reason)
    deciding = deciding_markers(markers, config)
    for k, place in deciding:
        masked[k][place] = tag_id(masked[k][place], DECIDING)
    if len(masked) > len(messages):
        masked[:2] = [masked[0] + masked[1]]
    return MaskedPairs(list(zip(masked[::2], masked[1::2])), any(markers), True, len(deciding))


def _split_system(first: EncodedMessage, own: int, marker_id: int) -> list[EncodedMessage]:
    """Take the system prompt's markers off the first message, whose ids begin with it; the last `own` are its own."""
    places = [place for place, token in enumerate(first.token_ids) if token == marker_id]
    end = places[len(places) - own - 1] + 1 if own < len(places) else 0
    return [
        EncodedMessage(first.token_ids[:end], "system", first.weight),
        EncodedMessage(first.token_ids[end:], first.role, first.weight),
    ]


def _mark(ids: list[TypedTokenId], spans: list[Span]) -> list[TypedTokenId]:
    for start, stop, reason in spans:
        ids[start:stop] = mark_untrained(ids[start:stop], reason)
    return ids
