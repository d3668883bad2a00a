"""LLaMA-Factory's dataset converters, plus each message's semantic type and those of its parts."""

import json
import os
import re
from collections import Counter, deque
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from llamafactory.data.converter import DatasetConverter

from ..._version import __version__
from ...labeling.formats import DatasetFormat, SampleMessage, read_sample, type_sample
from ...labeling.matching import MessageTypes
from ...labeling.rule import MEDIA
from ...labeling.rule_set import RuleSet
from ...semantics import SemanticType
from ...typed.spans import Span, encode_spans, fill_gaps, shift
from .template import TURN_KEY, TYPE_KEY, WEIGHT_KEY
from .trajectories import read_whole


if TYPE_CHECKING:
    from llamafactory.data.converter import DatasetConverter as MixedInto
else:
    MixedInto = object


INDEX_COLUMN = "_hsa_index"  # the sample's number in its data set, before and after conversion
SOURCE_COLUMN = "_hsa_dataset"
SYSTEM_TYPE_COLUMN = "_hsa_system_type"
SYSTEM_SPANS_COLUMN = "_hsa_system_spans"
TYPED_COLUMN = "_hsa_typed_messages"
RULES_COLUMN = "_hsa_rules"
SPANS_KEY = "spans"  # of a converted message
REPLY_JOINT = "\n</tool_response>\n<tool_response>\n"  # what LLaMA-Factory puts between the replies of parallel calls
_PLACEHOLDER = re.compile(f"<({'|'.join(MEDIA)})>")


class _AlignedMessage(NamedTuple):
    """Types of a converted message.

    Attributes:
        semantic_type: The message's; None: it has none.
        spans: Types of parts of its text; none if there is one type only.
        is_given: Whether the data gave a type.
        weight: 0 keeps the message out of the loss.
        number: Its place among the messages of the data; -1: it has none.
    """

    semantic_type: int | None
    spans: tuple[Span, ...]
    is_given: bool = False
    weight: int = 1
    number: int = -1


UNTYPED_MESSAGE = _AlignedMessage(None, ())


class TypedConverterMixin(MixedInto):
    """Adds type, weight and turn to every message, whatever the format: all data sets have the same columns and mix.

    Set by the integration on the data set's attributes: `semantic_tag`, `hsa_name`.
    """

    default_type: int
    rules: RuleSet | None

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        where = f"dataset {self._name!r}, sample {example.get(INDEX_COLUMN, '?')}"
        dataset_format = self._format
        matches = Counter(dict.fromkeys(self.rules.names, 0)) if self.rules is not None else None
        notes: Counter[str] = Counter()
        try:
            example = read_whole(example, dataset_format, self.data_args.template, notes)
            turns = read_sample(example, dataset_format)
            system, aligned = self._align_all(turns, type_sample(turns, dataset_format, self.rules, matches))
        except ValueError as error:
            raise ValueError(f"{where}, {error}") from None
        try:
            output = super().__call__(_with_joined_parts(example, turns, dataset_format))
        except Exception as error:
            raise ValueError(f"{where}: the sample does not have the expected format ({error!r}).") from error

        messages = output["_prompt"] + output["_response"]
        if len(aligned) != len(messages):  # a sample that LLaMA-Factory found broken
            aligned = [UNTYPED_MESSAGE] * len(messages)
        for place, (message, turn) in enumerate(zip(messages, aligned)):
            message[WEIGHT_KEY] = turn.weight
            message[TURN_KEY] = place if dataset_format.formatting == "alpaca" else turn.number
            message[TYPE_KEY] = self.default_type if turn.semantic_type is None else turn.semantic_type
            message[SPANS_KEY] = encode_spans(turn.spans)

        output[SYSTEM_TYPE_COLUMN] = int(SemanticType.GLOBAL if system.semantic_type is None else system.semantic_type)
        output[SYSTEM_SPANS_COLUMN] = encode_spans(system.spans)
        output[TYPED_COLUMN] = sum(turn.is_given for turn in aligned)
        ruled = sum(not turn.is_given and (turn.semantic_type is not None or bool(turn.spans)) for turn in aligned)
        output[RULES_COLUMN] = json.dumps([ruled, matches or {}, notes]) if notes or matches is not None else ""
        output[SOURCE_COLUMN] = self._name
        output[INDEX_COLUMN] = int(example.get(INDEX_COLUMN, -1))
        self._place_media(output, example, turns)
        self._check_media(output, where)
        return output

    def _align_all(
        self, turns: list[SampleMessage], typings: list[MessageTypes]
    ) -> tuple[_AlignedMessage, list[_AlignedMessage]]:
        """Return the types of the system message and of the others."""
        dataset_format = self._format
        first = int(bool(turns) and turns[0].message.role == "system")
        (system,) = _align(turns[:first], typings[:first], dataset_format, int(SemanticType.GLOBAL)) or [
            UNTYPED_MESSAGE
        ]
        if system.weight == 0 and self.data_args.train_on_prompt:
            raise ValueError(
                f"{turns[0].where}: the system message shares its turn with the first user message, so its weight 0 "
                "cannot be honoured with train_on_prompt. Remove one of them."
            )
        return system, _align(turns[first:], typings[first:], dataset_format, self.default_type)

    @cached_property
    def _format(self) -> DatasetFormat:
        return DatasetFormat.from_attributes(self.dataset_attr)

    @property
    def _name(self) -> str:
        name: str = getattr(self.dataset_attr, "hsa_name", self.dataset_attr.dataset_name)
        return name

    def _place_media(self, output: dict[str, Any], example: dict[str, Any], turns: list[SampleMessage]) -> None:
        """Put the files that parts name among those of the sample's columns, in the order of their placeholders."""
        if not any(turn.media for turn in turns):
            return

        columns = {}
        for kind in MEDIA:
            column = getattr(self.dataset_attr, f"{kind}s")
            given = (example.get(column) if column else None) or []
            columns[kind] = deque(given if isinstance(given, list) else [given])
        placed: dict[str, list[Any]] = {kind: [] for kind in MEDIA}
        for turn in turns:
            if turn.message.role == "system":
                continue
            named = {place: file for place, _, file in turn.media}
            for match in _PLACEHOLDER.finditer(turn.message.text):
                kind = match.group(1)
                if match.start() in named:
                    placed[kind].append(named[match.start()])
                elif columns[kind]:
                    placed[kind].append(columns[kind].popleft())
        for kind, files in placed.items():
            output[f"_{kind}s"] = self._find_medias([*files, *columns[kind]])

    def _check_media(self, output: dict[str, Any], where: str) -> None:
        """Refuse a file that is not there now, before hours of training end at it."""
        if self.dataset_attr.load_from not in ("script", "file"):
            return

        for column in ("_images", "_videos", "_audios"):
            for media in output[column] or []:
                for path in media if isinstance(media, list) else [media]:
                    if isinstance(path, str) and "://" not in path and not os.path.exists(path):
                        raise FileNotFoundError(
                            f"{where}: {column[1:-1]} {path!r} does not exist. Paths are looked up in `media_dir` "
                            f"({self.data_args.media_dir!r}) and as they are."
                        )


def typed_converter(
    converter_class: type[DatasetConverter], default_type: SemanticType, rules: RuleSet | None = None
) -> type[DatasetConverter]:
    """Return a converter class that also gives every message a type.

    Args:
        converter_class: A registered converter.
        default_type: Type of a message without one.
        rules: Rules for messages without a type of their own; None: there are none.
    """
    name = f"Typed{converter_class.__name__}"
    attributes = {
        "__module__": __name__,
        "default_type": int(default_type),
        "rules": rules,
        "version": __version__,  # part of the cache's key, as all of these
    }
    return type(name, (TypedConverterMixin, converter_class), attributes)


def _with_joined_parts(
    example: dict[Any, Any], turns: list[SampleMessage], dataset_format: DatasetFormat
) -> dict[Any, Any]:
    """Return a sample with texts where content is a list of parts."""
    tag: Any = dataset_format.content_tag
    texts = {id(turn.source): turn.message.text for turn in turns if turn.source is not None}

    def joined(message: Any) -> Any:
        return {**message, tag: texts[id(message)]} if isinstance(message.get(tag), list) else message

    if not any(turn.source is not None and isinstance(turn.source.get(tag), list) for turn in turns):
        return example
    changed: dict[Any, Any] = {
        dataset_format.messages: [joined(message) for message in example[dataset_format.messages]]
    }
    if dataset_format.ranking:
        changed |= {column: joined(example[column]) for column in (dataset_format.chosen, dataset_format.rejected)}
    return {**example, **changed}


def _align(
    turns: Sequence[SampleMessage], typings: Sequence[MessageTypes], dataset_format: DatasetFormat, default: int
) -> list[_AlignedMessage]:
    """Bring types to the messages that LLaMA-Factory makes: it joins the replies of parallel calls in openai's format."""
    aligned, replies = [], []
    for turn, typing in zip(turns, typings):
        if dataset_format.formatting == "openai" and turn.message.role == "observation":
            replies.append((turn, typing))
            continue
        if replies:
            aligned.append(_join(replies, default))
            replies = []
        aligned.append(_join([(turn, typing)], default))
    return aligned


def _join(turns: Sequence[tuple[SampleMessage, MessageTypes]], default: int) -> _AlignedMessage:
    """Join the types of turns that become one message; what is between them has the type that remembers most."""
    if len(turns) == 1 and not turns[0][1].spans:  # by far the most frequent case
        ((turn, typing),) = turns
        given = turn.message.semantic_type is not None or bool(turn.message.spans)
        return _AlignedMessage(typing.semantic_type, (), given, _parse_weight(turn), turn.number)
    is_given = any(turn.message.semantic_type is not None or turn.message.spans for turn, _ in turns)
    bases = [typing.semantic_type for _, typing in turns if typing.semantic_type is not None]
    base = min(bases, default=None)
    spans: list[Span] = []
    if any(typing.spans for _, typing in turns):
        rest = default if base is None else base
        start = 0
        for turn, typing in turns:
            own = rest if typing.semantic_type is None else typing.semantic_type
            length = len(turn.message.text)
            spans += shift(fill_gaps(typing.spans, length, own), start)
            start += length + len(REPLY_JOINT)
    weight = min(_parse_weight(turn) for turn, _ in turns)
    return _AlignedMessage(base, tuple(spans), is_given, weight, turns[0][0].number)


def _parse_weight(turn: SampleMessage) -> int:
    """Read a message's weight: 0 masks it, 1 or none trains it.

    Raises:
        ValueError: If it is anything else.
    """
    value = (turn.source or {}).get("weight")
    if value is None:
        return 1
    if value in (0, 1) and not isinstance(value, bool):
        return int(value)
    raise ValueError(
        f"{turn.where}: weight {value!r} is not allowed: 0 keeps the message out of the loss, 1 or no weight trains it."
    )
