"""One sample encoded once more, whole, so that each token of the finished row can be traced to its message."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from ...feedback import IGNORE_INDEX, REPLIES, Reason
from ...inspection.inspected_sample import Media, Turn
from ...typed.ids import tag_id
from ...typed.turns import number_messages
from ..data.aligned import MEDIA_COLUMNS
from ..data.report import DatasetAccount
from ..data.template import TURN_KEY, Pairs
from ..data.truncation import PLACEHOLDERS
from ..data.typed_processor import Sample, TypedProcessorMixin


KINDS = ("image", "video", "audio")


@dataclass(frozen=True)
class Record:
    """What a sample became.

    Attributes:
        input_ids: The ids that the cut leaves.
        reasons: Why each is not trained; None where it is.
        turns: Its messages, those included that were cut away whole.
    """

    input_ids: list[int]
    reasons: list[str | None]
    turns: list[Turn]


def record_sample(processor: TypedProcessorMixin, example: dict[str, Any], part: int, start: int) -> list[Record]:
    """Encode a sample as it was prepared and note where everything went.

    Args:
        processor: Made for this, with the run's options.
        example: A converted sample.
        part: Number of the sample in its row.
        start: Place of its first token in the row.

    Returns:
        A record for each sequence that the sample becomes (`TypedProcessorMixin.prefixes`).
    """
    wholes: list[list[list[int]]] = []  # of each sequence, ids of each message before the cut

    def tag_messages(pairs: Pairs) -> Pairs:
        tagged = []
        whole: list[list[int]] = []
        wholes.append(whole)
        for k, ids in enumerate(ids for pair in pairs for ids in pair):
            whole.append([int(token) for token in ids])
            tagged.append([tag_id(token, k) for token in ids])
        return list(zip(tagged[::2], tagged[1::2]))

    columns = {name: [value] for name, value in example.items()}
    media = [list(columns[name][0] or []) for name in MEDIA_COLUMNS]
    processor.on_whole = tag_messages
    samples = processor._encode_samples(columns, 0, DatasetAccount())
    return [
        _record(processor, sample, whole, [list(files) for files in media], part, start)
        for sample, whole in zip(samples, wholes)
    ]


def _record(
    processor: TypedProcessorMixin,
    sample: Sample,
    whole: list[list[int]],
    media: list[list[Any]],
    part: int,
    start: int,
) -> Record:
    """Note where everything went of one sequence; media are taken off `media`."""
    messages = sample.messages
    input_ids, labels = sample.input_ids, sample.tokens.labels

    tagged = [getattr(token, "tag", None) for token in input_ids]
    owners, owner = [], next(tag for tag in tagged if tag is not None)
    for tag in tagged:
        owner = owner if tag is None else tag  # what LLaMA-Factory adds stands with the message before it
        owners.append(owner)
    reasons = [
        _reason(token, label, messages[owner]["role"], processor.media_ids)
        for token, label, owner in zip(input_ids, labels, owners)
    ]

    plain = [int(token) for token in input_ids]
    left, spans = Counter(tagged), Counter(owners)
    numbers = number_messages(message["role"] in REPLIES for message in messages)
    turns: list[Turn] = []
    place = 0
    for k, message in enumerate(messages):
        stop = place + spans[k]
        number = message.get(TURN_KEY, -1)
        ids = whole[k]
        if k == 0 and processor.template.system_length:
            system, ids = ids[: processor.template.system_length], ids[processor.template.system_length :]
            kept = min(left[0], len(system))
            middle = place + kept + (spans[0] - left[0])
            turns.append(
                Turn(part, 0 if number > 0 else None, "system", place, middle, system[kept:], number=numbers[k])
            )
            place, left[0] = middle, left[0] - kept
        shown = _media(processor, message["content"], media, plain[place:stop], place)
        spot = number if number >= 0 else None
        turns.append(Turn(part, spot, message["role"], place, stop, ids[left[k] :], shown, number=numbers[k]))
        place = stop
    return Record(plain, reasons, [_moved(turn, start) for turn in turns])


def _reason(token: Any, label: int, role: str, media_ids: frozenset[int]) -> str | None:
    if label != IGNORE_INDEX and token.trained:
        return None
    if token in media_ids:
        return Reason.MEDIA
    if label != IGNORE_INDEX:
        return token.untrained
    return Reason.HISTORY if role in REPLIES else Reason.ROLE


def _media(
    processor: TypedProcessorMixin, content: str, sources: list[list[Any]], ids: Sequence[int], start: int
) -> list[Media]:
    """Take a message's media off the front of `sources` and find where their placeholders stand in its ids."""
    found: list[tuple[str, Any, int | None]] = []
    for kind, placeholder, remaining in zip(KINDS, PLACEHOLDERS, sources):
        taken, remaining[:] = remaining[: content.count(placeholder)], remaining[content.count(placeholder) :]
        name = getattr(processor.template.mm_plugin, f"{kind}_token", None)
        token_id = processor.tokenizer.convert_tokens_to_ids(name) if name else None
        places = [place for place, token in enumerate(ids) if token == token_id]
        runs = [place for place in places if place == 0 or ids[place - 1] != token_id]
        each = len(runs) // max(len(taken), 1)  # a picture in rows, a clip in frames: several runs
        if ids:  # nothing is shown of a message that is gone
            found += [(kind, source, runs[i * each] if each else None) for i, source in enumerate(taken)]

    media = []
    for kind, source, place in found:
        size = 0
        if place is not None:
            stop = min((other for *_, other in found if other is not None and other > place), default=len(ids))
            size = len(list(takewhile(processor.media_ids.__contains__, ids[place:stop])))
        media.append(Media(kind, source, start + (place or 0), size))
    return media


def _moved(turn: Turn, by: int) -> Turn:
    media = [replace(item, start=item.start + by) for item in turn.media]
    return replace(turn, start=turn.start + by, stop=turn.stop + by, media=media)
