"""One sample labelled: its types written beside its texts, everything else as it was."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ..semantics import SemanticType
from .formats import SAMPLE_TYPES_KEY, Layout, Turn, read_turns, type_turns
from .matching import Typing, runs
from .parts import SPANS_KEY, TYPE_KEY, write_spans
from .rules import RuleSet
from .summary import Summary


Counting = Callable[[str, Typing], Mapping[str, int]]  # text, typing → amount of text by type's name


class SampleLabeller:
    """Labels samples one by one, and counts.

    Args:
        layout: The data's; `semantic_tag` is the key that types are written under.
        rules: The rules.
        count: How text is counted; None: by characters.
    """

    def __init__(self, layout: Layout, rules: RuleSet, count: Counting | None = None) -> None:
        self.layout, self.rules = layout, rules
        self.count = count or count_characters

    def label(self, sample: Any, summary: Summary) -> dict[str, Any]:
        """Return the sample with types; the summary takes it in.

        Raises:
            ValueError: If the sample does not have the format; the message names the turn. The summary is unchanged.
        """
        if not isinstance(sample, Mapping):
            raise ValueError(f"expected an object, got {sample!r:.80}.")
        turns = read_turns(sample, self.layout)
        self._check_roles(turns)
        matches: Counter = Counter()
        typings = type_turns(turns, self.layout, self.rules, matches)
        labelled = self._write(sample, turns, typings)

        summary.samples += 1
        summary.matches.update(matches)
        for turn, typing in zip(turns, typings):
            summary.add_message(turn.message, typing)
            summary.amounts.update(self.count(turn.message.text, typing))
        return labelled

    def _check_roles(self, turns: list[Turn]) -> None:
        roles = self.layout.roles
        for turn in turns:
            if turn.source is not None and turn.message.role not in roles.values():
                raise ValueError(
                    f"{turn.where}: {self.layout.role_tag} = {turn.message.role!r} is not allowed: one of "
                    f"{', '.join(map(repr, roles))} (the tags of the data set)."
                )

    def _write(self, sample: Mapping[str, Any], turns: list[Turn], typings: list[Typing]) -> dict[str, Any]:
        written = {
            id(turn.source): self._message(turn, typing)
            for turn, typing in zip(turns, typings)
            if turn.source is not None
        }
        labelled = dict(sample)
        if self.layout.formatting != "alpaca":
            column = self.layout.messages
            labelled[column] = [written[id(message)] for message in sample[column]]
            for column in (self.layout.chosen, self.layout.rejected) if self.layout.ranking else ():
                if id(sample.get(column)) in written:
                    labelled[column] = written[id(sample[column])]
        if self.layout.formatting == "alpaca" or self.layout.system:
            labelled[SAMPLE_TYPES_KEY] = [
                {"role": turn.message.role, **_type_and_spans(typing)}
                for turn, typing in zip(turns, typings)
                if turn.source is None
            ]
        return labelled

    def _message(self, turn: Turn, typing: Typing) -> dict[str, Any]:
        message = dict(turn.source)
        if turn.message.semantic_type is None:
            message[self.layout.semantic_tag] = _name(typing.semantic_type)
        if typing.spans:
            message[SPANS_KEY] = write_spans(typing.spans)
        return message


def add_anchor(sample: dict[str, Any], layout: Layout) -> None:
    """Give a sample spans if it has none, so that a reader that guesses columns from the first rows knows them."""
    for rows in (sample.get(SAMPLE_TYPES_KEY), sample.get(layout.messages)):
        if rows and not any(row.get(SPANS_KEY) for row in rows):
            rows[0][SPANS_KEY] = [{"start": 0, "end": 0, TYPE_KEY: SemanticType.GLOBAL.name}]  # covers nothing


def count_characters(text: str, typing: Typing) -> Counter:
    """Count characters by type's name; those that take the default type as ``default``."""
    counts: Counter = Counter()
    for length, semantic_type in runs(typing, len(text)):
        counts[_name(semantic_type) or "default"] += length
    return counts


def _type_and_spans(typing: Typing) -> dict[str, Any]:
    types = {TYPE_KEY: _name(typing.semantic_type)}
    return {**types, SPANS_KEY: write_spans(typing.spans)} if typing.spans else types


def _name(semantic_type: int | None) -> str | None:
    return None if semantic_type is None else SemanticType(semantic_type).name
