"""The mistake and the correction of a pair: a message, or the part of one before or after a marker."""

from collections.abc import Mapping
from typing import Any

from ..labeling.formats import DatasetFormat
from ..labeling.parts import SPANS_KEY, join_parts
from ..labeling.weights import STEP_KEY, STEP_LABELS, WEIGHT_KEYS, StepLabels, read_weight
from .conversation import Turn
from .feedback_turns import Attempt


_THOUGHT = ("<think>", "</think>")


def text_of(turn: Turn, attempt: Attempt) -> str:
    """Return what an attempt says."""
    return turn.read.message.text[attempt.start : attempt.stop]


def is_whole(turn: Turn, attempt: Attempt) -> bool:
    """Whether an attempt is all of its message."""
    return attempt.start == 0 and attempt.stop == len(turn.read.message.text)


def cuts_a_thought(turn: Turn, attempt: Attempt) -> bool:
    """Whether an attempt holds only one end of a thought."""
    text = text_of(turn, attempt)
    return not is_whole(turn, attempt) and text.count(_THOUGHT[0]) != text.count(_THOUGHT[1])


def is_untrained(turn: Turn) -> bool:
    """Whether a message says that it is not trained: weight 0, or a label such as ``mistake``."""
    label = turn.message.get(STEP_KEY)
    if isinstance(label, str) and STEP_LABELS.get(label.strip().lower()) == 0:
        return True
    return read_weight(turn.read, StepLabels(key=None)) == 0


def without_weight(message: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a message that no longer says how much it is trained."""
    return {key: value for key, value in message.items() if key not in (*WEIGHT_KEYS, STEP_KEY)}


def cut_message(turn: Turn, attempt: Attempt, dataset_format: DatasetFormat) -> dict[Any, Any]:
    """Return an attempt as a message: text, parts and spans from its start to its stop, all other keys as they were."""
    if is_whole(turn, attempt):
        return dict(turn.message)
    message = dict(turn.message)
    content_tag: Any = dataset_format.content_tag
    content = message[content_tag]
    message[content_tag] = (
        _cut_parts(content, attempt) if isinstance(content, list) else content[attempt.start : attempt.stop]
    )
    if message.get(SPANS_KEY):
        message[SPANS_KEY] = _cut_spans(message[SPANS_KEY], attempt)
    return message


def _cut_spans(spans: list[dict[str, Any]], attempt: Attempt) -> list[dict[str, Any]]:
    cut = []
    for span in spans:
        start, end = max(span["start"], attempt.start), min(span["end"], attempt.stop)
        if start < end:
            cut.append({**span, "start": start - attempt.start, "end": end - attempt.start})
    return cut


def _cut_parts(parts: list[Any], attempt: Attempt) -> list[Any]:
    cut: list[Any] = []
    position = 0
    for part in parts:
        text = join_parts([part]).text
        start, end = max(attempt.start - position, 0), min(attempt.stop - position, len(text))
        position += len(text)
        if start >= end:
            continue
        if isinstance(part, Mapping):
            key = "text" if part.get("text") is not None else "refusal"
            cut.append({**part, key: text[start:end]} if key in part else dict(part))
        else:
            cut.append(text[start:end])
    return cut
