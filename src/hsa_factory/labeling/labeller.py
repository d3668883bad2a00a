"""One sample labelled: its types written beside its texts, everything else as it was."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ..semantics import SemanticType
from .formats import SAMPLE_TYPES_KEY, DatasetFormat, SampleMessage, type_sample
from .matching import Message, MessageTypes
from .parts import SPANS_KEY, TYPE_KEY, write_spans
from .rule_set import RuleSet
from .summary import Summary
from .trainable import as_texts, check_roles, check_trainable
from .trajectories.normalise import normalise
from .turn_order import broken_order


Counting = Callable[[str, MessageTypes], Mapping[str, int]]  # text, typing → amount of text by type's name


class SampleLabeller:
    """Labels samples one by one, and counts.

    Args:
        dataset_format: The data's; `semantic_tag` is the key that types are written under.
        rules: The rules.
        count: How text is counted; None: by characters.
    """

    def __init__(self, dataset_format: DatasetFormat, rules: RuleSet, count: Counting | None = None) -> None:
        self.dataset_format, self.rules = dataset_format, rules
        self.count = count or count_characters

    def label(self, sample: Any, summary: Summary, where: str = "") -> dict[str, Any]:
        """Return the sample with types, in a form that LLaMA-Factory reads whole; the summary takes it in.

        Args:
            sample: Any sample.
            summary: Added to.
            where: What the summary calls the sample.

        Raises:
            ValueError: If the sample does not have the format; the message names the turn. The summary is unchanged.
        """
        notes: Counter = Counter()
        sample = normalise(sample, self.dataset_format, notes=notes)
        sample = as_texts(sample, self.dataset_format)
        turns = check_trainable(sample, self.dataset_format)
        check_roles(turns, self.dataset_format)
        matches: Counter = Counter()
        typings = type_sample(turns, self.dataset_format, self.rules, matches)
        labelled = self._write(sample, turns, typings)

        summary.samples += 1
        summary.matches.update(matches)
        summary.notes.update(notes)
        fault = broken_order(turns, self.dataset_format)
        if fault is not None:
            summary.leave_out(fault, where)
        for turn, typing in zip(turns, typings):
            summary.add_message(turn.message, typing)
            summary.amounts.update(self.count(turn.message.text, typing))
        return labelled

    def _write(
        self, sample: Mapping[Any, Any], turns: list[SampleMessage], typings: list[MessageTypes]
    ) -> dict[str, Any]:
        written = {
            id(turn.source): self._message(turn.source, turn.message, typing)
            for turn, typing in zip(turns, typings)
            if turn.source is not None
        }
        labelled: dict[Any, Any] = dict(sample)
        if self.dataset_format.formatting != "alpaca":
            column = self.dataset_format.messages
            labelled[column] = [written[id(message)] for message in sample[column]]
            for column in (
                (self.dataset_format.chosen, self.dataset_format.rejected) if self.dataset_format.ranking else ()
            ):
                if id(sample.get(column)) in written:
                    labelled[column] = written[id(sample[column])]
        if self.dataset_format.formatting == "alpaca" or self.dataset_format.system:
            labelled[SAMPLE_TYPES_KEY] = [
                {"role": turn.message.role, **_type_and_spans(typing)}
                for turn, typing in zip(turns, typings)
                if turn.source is None
            ]
        return labelled

    def _message(self, source: Mapping[str, Any], read: Message, typing: MessageTypes) -> dict[Any, Any]:
        message: dict[Any, Any] = dict(source)
        if read.semantic_type is None:
            message[self.dataset_format.semantic_tag] = _name(typing.semantic_type)
        if typing.spans:
            message[SPANS_KEY] = write_spans(typing.spans)
        return message


def add_anchor(sample: dict[Any, Any], dataset_format: DatasetFormat) -> None:
    """Give a sample spans if it has none, so that a reader that guesses columns from the first rows knows them."""
    for rows in (sample.get(SAMPLE_TYPES_KEY), sample.get(dataset_format.messages)):
        if rows and not any(row.get(SPANS_KEY) for row in rows):
            rows[0][SPANS_KEY] = [{"start": 0, "end": 0, TYPE_KEY: SemanticType.GLOBAL.name}]  # covers nothing


def count_characters(text: str, typing: MessageTypes) -> Counter:
    """Count characters by type's name; those that take the default type as ``default``."""
    counts: Counter[str] = Counter()
    for start, end, semantic_type in typing.spans:
        counts[SemanticType(semantic_type).name] += end - start
    counts[_name(typing.semantic_type) or "default"] += len(text) - counts.total()
    return counts


def _type_and_spans(typing: MessageTypes) -> dict[str, Any]:
    types = {TYPE_KEY: _name(typing.semantic_type)}
    return {**types, SPANS_KEY: write_spans(typing.spans)} if typing.spans else types


def _name(semantic_type: int | None) -> str | None:
    return None if semantic_type is None else SemanticType(semantic_type).name
