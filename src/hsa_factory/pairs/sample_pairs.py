"""The pairs of one sample, and of many."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from ..labeling.detect import detect_entry
from ..labeling.formats import DatasetFormat
from ..labeling.turn_order import NO_MESSAGES, broken_order
from .conversation import Conversation, Turn, read_conversation, written_format
from .counts import PairCounts
from .feedback_turns import Attempt, FeedbackTurn, LeftOut, find_feedback
from .media import MediaPlaces, media_columns
from .options import PairOptions
from .reply import cut_message, cuts_a_thought, is_untrained, is_whole, text_of, without_weight


CHOSEN, REJECTED = "chosen", "rejected"
WEIGHT_TAKEN_OFF = "mistakes with weight 0, which was taken off: a pair is trained on its mistake, too"
_ROLE_TAGS = tuple(f"{role}_tag" for role in ("user", "assistant", "observation", "function", "system"))
_TAGS = ("role_tag", "content_tag", *_ROLE_TAGS, "semantic_tag")
_LOOKED_AT = 1000  # samples, to find their layout


@dataclass(frozen=True)
class PairFormat:
    """What an entry of ``dataset_info.json`` says of the samples.

    Attributes:
        dataset_format: Of the samples.
        tools: Column of the tools' descriptions; None: there is none.
        media: Columns of media by kind.
    """

    dataset_format: DatasetFormat
    tools: str | None
    media: Mapping[str, str]

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> "PairFormat":
        """Read an entry.

        Raises:
            ValueError: If its samples are pairs already, or it is not valid.
        """
        if entry.get("ranking"):
            raise ValueError("these samples are pairs already (`ranking`): there is no feedback to make pairs of.")
        columns = entry.get("columns") or {}
        return cls(DatasetFormat.from_entry(entry), columns.get("tools"), media_columns(columns))

    @property
    def written(self) -> DatasetFormat:
        """The format of the pairs."""
        return replace(written_format(self.dataset_format), ranking=True, chosen=CHOSEN, rejected=REJECTED)


def pairs_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of ``dataset_info.json`` for the pairs of samples that another entry describes.

    Args:
        entry: Of the samples, without the file's name.

    Raises:
        ValueError: As `PairFormat.from_entry`.
    """
    written = PairFormat.from_entry(entry).written
    columns = entry.get("columns") or {}
    kept = {name: columns[name] for name in ("system", "tools", "images", "videos", "audios") if columns.get(name)}
    tags = {name: value for name in _TAGS if (value := getattr(written, name)) is not None}
    return {
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": written.messages, CHOSEN: CHOSEN, REJECTED: REJECTED, **kept},
        "tags": tags,
    }


def feedback_pairs(
    samples: Iterable[Mapping[str, Any]],
    entry: Mapping[str, Any] | None = None,
    options: PairOptions = PairOptions(),
    counts: PairCounts | None = None,
) -> Iterator[dict[Any, Any]]:
    """Yield a preference pair for each feedback in samples: what `hsa-factory pairs` writes.

    Args:
        samples: Trajectories in any format that `hsa-factory label` reads, one mapping each.
        entry: What an entry of ``dataset_info.json`` says of them (`formatting`, `columns`, `tags`); None: it is found from
            the first thousand samples.
        options: Which feedback becomes a pair.
        counts: What was made and left out, by the reason; added to. None: it is not counted.

    Yields:
        Samples of LLaMA-Factory's ranking format: the messages before the mistake in the column of messages, one message
        each in ``chosen`` (the correction) and ``rejected`` (the mistake), the media of these messages, and all other columns
        as they were. `pairs_entry` describes them.

    Raises:
        ValueError: If a sample cannot be read; the message names it by its place, from 0, and the turn.
    """
    waiting = iter(samples)
    if entry is None:
        first = list(islice(waiting, _LOOKED_AT))
        if not first:
            return
        entry = detect_entry(first)
        waiting = chain(first, waiting)
    pair_format = PairFormat.from_entry(entry)
    counts = PairCounts() if counts is None else counts
    for number, sample in enumerate(waiting):
        try:
            yield from pairs_of_sample(sample, pair_format, options, counts, f"sample {number}")
        except ValueError as error:
            raise ValueError(f"sample {number}: {error}") from None


def pairs_of_sample(
    sample: Any, pair_format: PairFormat, options: PairOptions, counts: PairCounts, where: str = ""
) -> list[dict[Any, Any]]:
    """Return the pairs of one sample.

    Args:
        sample: Any sample.
        pair_format: Its format.
        options: Which feedback becomes a pair.
        counts: Added to.
        where: What the counts call the sample.

    Raises:
        ValueError: If it cannot be read; the message names the turn, and the counts are as they were.
    """
    notes: Counter[str] = Counter()
    conversation = read_conversation(sample, pair_format.dataset_format, pair_format.tools, notes)
    if {CHOSEN, REJECTED} & conversation.rest.keys():
        raise ValueError(f"it has a column {CHOSEN!r} or {REJECTED!r} already: rename it.")
    reads = [turn.read.message for turn in conversation.turns]
    feedback = find_feedback([read.role for read in reads], [read.text for read in reads], options)
    media = MediaPlaces(conversation, pair_format.media)
    maker = _PairMaker(conversation, pair_format.written, media, notes)
    made = [maker.make(turn) for turn in feedback]

    counts.samples += 1
    counts.messages += len(reads)
    counts.unmarked += not feedback
    counts.feedback += len(feedback)
    counts.notes.update(notes)
    pairs = []
    for turn, pair in zip(feedback, made):
        if isinstance(pair, str):
            counts.leave_out(pair, f"{where}, {conversation.turns[turn.message].read.where}")
        else:
            pairs.append(pair)
    counts.pairs += len(pairs)
    return pairs


class _PairMaker:
    """Makes pairs of the feedback of one sample."""

    def __init__(
        self, conversation: Conversation, written: DatasetFormat, media: MediaPlaces, notes: Counter[str]
    ) -> None:
        self.conversation, self.written, self.media, self.notes = conversation, written, media, notes
        self.turns: Sequence[Turn] = conversation.turns
        self.numbered = [turn.read._replace(number=number) for number, turn in enumerate(self.turns)]

    def make(self, feedback: FeedbackTurn) -> dict[Any, Any] | str:
        """Return the pair of one feedback, or why there is none."""
        mistake, correction = feedback.mistake, feedback.correction
        if feedback.left_out is not None or mistake is None or correction is None:
            return str(feedback.left_out)
        reason = self._obstacle(mistake, correction)
        if reason is not None:
            return reason
        prompt = [turn.message for turn in self.turns[: mistake.message]]
        return {
            **self.conversation.rest,
            **self.media.first_files(mistake.message),
            str(self.written.messages): prompt,
            CHOSEN: cut_message(self.turns[correction.message], correction, self.written),
            REJECTED: self._rejected(mistake),
        }

    def _rejected(self, mistake: Attempt) -> dict[Any, Any]:
        turn = self.turns[mistake.message]
        message = cut_message(turn, mistake, self.written)
        if is_untrained(turn):
            self.notes[WEIGHT_TAKEN_OFF] += 1
            return without_weight(message)
        return message

    def _obstacle(self, mistake: Attempt, correction: Attempt) -> str | None:
        """Return why two attempts are no pair; None: they are."""
        wrong, right = self.turns[mistake.message], self.turns[correction.message]
        texts = text_of(wrong, mistake), text_of(right, correction)
        for turn, attempt in ((wrong, mistake), (right, correction)):
            if turn.read.message.role == "function" and not is_whole(turn, attempt):
                return LeftOut.IN_A_CALL
            if cuts_a_thought(turn, attempt):
                return LeftOut.IN_A_THOUGHT
            if self.media.has_media([turn], attempt.start, attempt.stop):
                return LeftOut.MEDIA
        if not texts[0].strip():
            return LeftOut.EMPTY_MISTAKE
        if not texts[1].strip():
            return LeftOut.EMPTY_CORRECTION
        if texts[0].strip() == texts[1].strip():
            return LeftOut.SAME
        if is_untrained(right):
            return LeftOut.UNTRAINED
        fault = broken_order(self.numbered[: mistake.message], self.written)
        if fault is not None:
            return LeftOut.NO_PROMPT if fault == NO_MESSAGES else f"{LeftOut.ORDER}: {fault}"
        return None
