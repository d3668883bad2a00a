"""LLaMA-Factory's dataset converters, plus each message's semantic type and those of its parts."""

import json
import os
import re
from collections import Counter, deque
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llamafactory.data.converter import DatasetConverter

from ..._version import __version__
from ...labeling.formats import FORMATS, DatasetFormat, SampleMessage, read_sample, type_sample
from ...labeling.matching import MessageTypes
from ...labeling.rule import MEDIA
from ...labeling.rule_set import RuleSet
from ...labeling.trainable import as_texts, check_content
from ...loss_weights import LossWeightsConfig, weigh_turn
from ...semantics import SemanticType
from ...typed.spans import encode_spans
from .aligned import (
    INDEX_COLUMN,
    MEDIA_COLUMNS,
    RULES_COLUMN,
    SOURCE_COLUMN,
    SPANS_KEY,
    SYSTEM_SPANS_COLUMN,
    SYSTEM_TYPE_COLUMN,
    TYPED_COLUMN,
)
from .alignment import UNTYPED_MESSAGE, AlignedMessage, align, with_empty_reply
from .json_files import JSON_COLUMN, PLACE_COLUMN, parse_row
from .media_files import MediaError, local_file, shorten
from .template import ALWAYS_KEY, TURN_KEY, TYPE_KEY, WEIGHT_KEY
from .trajectories import read_whole


if TYPE_CHECKING:
    from llamafactory.data.converter import DatasetConverter as MixedInto
else:
    MixedInto = object


_PLACEHOLDER = re.compile(f"<({'|'.join(MEDIA)})>")


class TypedConverterMixin(MixedInto):
    """Adds type, weight and turn to every message, whatever the format: all data sets have the same columns and mix.

    Set by the integration on the data set's attributes: `semantic_tag`, `hsa_name`.
    """

    default_type: int
    rules: RuleSet | None
    cache_dir: str | None
    are_paths: bool
    has_frames: bool
    loss_weights: LossWeightsConfig
    options: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a process that was not forked makes it: its class has no name there."""
        return _converter, self.options, vars(self)

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        where = f"dataset {self._name!r}, sample {example.get(INDEX_COLUMN, '?')}"
        place = f" ({example[PLACE_COLUMN]})" if PLACE_COLUMN in example else ""
        matches = Counter(dict.fromkeys(self.rules.names, 0)) if self.rules is not None else None
        notes: Counter[str] = Counter()
        try:
            sample = self._read(example, notes)
            turns = read_sample(sample, self._format)
            typings = type_sample(turns, self._format, self.rules, matches)
            system, aligned = self._align_all(turns, typings, self._weigh_all(turns, notes))
        except ValueError as error:
            raise ValueError(f"{where}, {error}{place}") from None
        try:
            output = super().__call__(_with_joined_parts(sample, turns, self._format))
            self._place_media(output, sample, turns)
            self._check_media(output)
        except (MediaError, FileNotFoundError) as error:
            raise type(error)(f"{where}: {error}{place}") from None
        except Exception as error:
            self._check_contents(turns, where, place)
            problem = shorten(repr(error))
            raise ValueError(f"{where}: the sample does not have the expected format ({problem}).{place}") from error

        messages = output["_prompt"] + output["_response"]
        if any(message["content"] is None for message in messages):
            self._check_contents(turns, where, place)
        try:
            aligned = self._fit(aligned, output, sample, notes)
        except ValueError as error:
            raise ValueError(f"{where}: {error}{place}") from None
        for message, turn in zip(messages, aligned):
            message[WEIGHT_KEY] = 1 if turn.weight is None else turn.weight
            message[ALWAYS_KEY] = turn.weight == 1
            message[TURN_KEY] = turn.number
            message[TYPE_KEY] = self.default_type if turn.semantic_type is None else turn.semantic_type
            message[SPANS_KEY] = encode_spans(turn.spans)

        output[SYSTEM_TYPE_COLUMN] = int(SemanticType.GLOBAL if system.semantic_type is None else system.semantic_type)
        output[SYSTEM_SPANS_COLUMN] = encode_spans(system.spans)
        output[TYPED_COLUMN] = sum(turn.is_given for turn in aligned)
        ruled = sum(not turn.is_given and (turn.semantic_type is not None or bool(turn.spans)) for turn in aligned)
        output[RULES_COLUMN] = json.dumps([ruled, matches or {}, notes]) if notes or matches is not None else ""
        output[SOURCE_COLUMN] = self._name
        output[INDEX_COLUMN] = int(example.get(INDEX_COLUMN, -1))
        return output

    def _read(self, row: dict[str, Any], notes: Counter[str]) -> dict[Any, Any]:
        """Return a row's sample, texts where LLaMA-Factory wants texts, and media as files of this machine."""
        sample: Any = row
        if JSON_COLUMN in row:
            sample = parse_row(row)
        sample = read_whole(sample, self._format, self.data_args.template, notes, self.loss_weights.step_key)
        sample = as_texts(sample, self._format, self.dataset_attr.tools)
        if JSON_COLUMN in row and not self._absent.keys() <= sample.keys():
            sample = {**self._absent, **sample}
        for kind, column in self._media_columns.items():
            if sample.get(column):
                sample[column] = self._local_files(sample[column], kind)
        return sample

    def _local_files(self, media: Any, kind: str) -> Any:
        if isinstance(media, list):
            return [local_file(medium, kind, self.are_paths, self.cache_dir) for medium in media]
        return local_file(media, kind, self.are_paths, self.cache_dir)

    def _check_contents(self, turns: list[SampleMessage], where: str, place: str) -> None:
        try:
            for turn in turns:
                check_content(turn, self._format)
        except ValueError as error:
            raise ValueError(f"{where}, {error}{place}") from None

    def _align_all(
        self, turns: list[SampleMessage], typings: list[MessageTypes], weights: list[float | None]
    ) -> tuple[AlignedMessage, list[AlignedMessage]]:
        """Return the types of the system message and of the others."""
        dataset_format = self._format
        first = int(bool(turns) and turns[0].message.role == "system")
        facts = list(zip(turns, typings, weights))
        (system,) = align(facts[:first], dataset_format, int(SemanticType.GLOBAL)) or [UNTYPED_MESSAGE]
        if system.weight is not None and (system.weight != 0 or self.data_args.train_on_prompt):
            raise ValueError(
                f"{turns[0].where}: the system message shares its turn with the first user message, so its weight "
                f"{system.weight:g} cannot be honoured{' with train_on_prompt' if system.weight == 0 else ''}. Remove "
                "one of them."
            )
        aligned = align(facts[first:], dataset_format, self.default_type)
        if dataset_format.formatting == "alpaca":
            aligned = [turn._replace(number=number) for number, turn in enumerate(aligned)]
        return system, aligned

    def _fit(
        self, aligned: list[AlignedMessage], output: dict[str, Any], sample: dict[Any, Any], notes: Counter[str]
    ) -> list[AlignedMessage]:
        """Return one typing for each message that LLaMA-Factory has made of a sample.

        Raises:
            ValueError: If it has made other messages than the data hold.
        """
        number = len(output["_prompt"]) + len(output["_response"])
        label = sample.get(self.dataset_attr.kto_tag) if self.dataset_attr.kto_tag else None
        is_labelled = isinstance(label, bool) and bool(output["_response"])
        if is_labelled:
            aligned = with_empty_reply(aligned, bool(label))
        if len(aligned) == number:
            return aligned

        replies = 2 if is_labelled or self.dataset_attr.ranking else 1
        is_left_out = len(output["_prompt"]) % 2 != 1 or len(output["_response"]) < replies
        if self._format.formatting in FORMATS and not is_left_out:
            raise ValueError(
                f"LLaMA-Factory makes {number} messages of its {len(aligned)}, so that their types would be lost. An entry of "
                "dataset_info.json is of one kind: `kto_tag`, or `ranking` with `chosen` and `rejected`."
            )
        if not is_left_out:
            notes[f"types not known, because formatting {self._format.formatting!r} is another's"] += 1
        return [UNTYPED_MESSAGE] * number

    def _weigh_all(self, turns: list[SampleMessage], notes: Counter[str]) -> list[float | None]:
        """Return how much each message is trained; None: as its role is. Labels of steps are counted."""
        config = self.loss_weights
        weights = []
        for turn in turns:
            weights.append(weigh_turn(turn, config))
            if config.step_key is not None and turn.source is not None and turn.source.get(config.step_key):
                notes[f"{config.step_key} {str(turn.source[config.step_key]).strip().lower()!r}"] += 1
        return weights

    @cached_property
    def _format(self) -> DatasetFormat:
        return DatasetFormat.from_attributes(self.dataset_attr)

    @cached_property
    def _media_columns(self) -> dict[str, Any]:
        """The columns of each kind of media that the data set has."""
        columns = {kind: getattr(self.dataset_attr, f"{kind}s") for kind in MEDIA}
        return {kind: column for kind, column in columns.items() if column}

    @cached_property
    def _absent(self) -> dict[str, None]:
        """What a sample without the columns of the data set has in their stead."""
        return dict.fromkeys(named_columns(self.dataset_attr))

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
            column = self._media_columns.get(kind)
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
                    placed[kind].append(local_file(named[match.start()], kind, self.are_paths, self.cache_dir))
                elif columns[kind]:
                    placed[kind].append(columns[kind].popleft())
        for kind, files in placed.items():
            output[f"_{kind}s"] = self._find_medias([*files, *columns[kind]])

    def _check_media(self, output: dict[str, Any]) -> None:
        """Refuse a file that is not there now, before hours of training end at it."""
        is_local = self.dataset_attr.load_from in ("script", "file")
        for column in MEDIA_COLUMNS:
            name = column[1:-1]
            for medium in output[column] or []:
                if self.are_paths and isinstance(medium, list) != (self.has_frames and name == "video"):
                    raise MediaError(
                        f"{name} {shorten(medium)}: expected a path. A video may be a list of frames if every video of the "
                        f"data set is one and they stand in its column `videos`."
                    )
                for path in medium if isinstance(medium, list) else [medium]:
                    if self.are_paths and not isinstance(path, str):
                        raise MediaError(f"{name}: expected a path, got {shorten(path)}.")
                    if is_local and isinstance(path, str) and "://" not in path and not os.path.exists(path):
                        raise FileNotFoundError(
                            f"{name} {shorten(path)!r} does not exist. Paths are looked up in `media_dir` "
                            f"({self.data_args.media_dir!r}) and as they are."
                        )


def named_columns(attributes: Any) -> list[str]:
    """Return the columns that an entry of ``dataset_info.json`` counts on, by its format.

    Args:
        attributes: LLaMA-Factory's `DatasetAttr`.
    """
    names = ["kto_tag", *(f"{kind}s" for kind in MEDIA)]
    names += ["system", "tools"] if attributes.formatting != "openai" else []  # LLaMA-Factory does without them there
    names += ["prompt", "query", "response", "history"] if attributes.formatting == "alpaca" else ["messages"]
    names += ["chosen", "rejected"] if attributes.ranking else []
    return [column for column in (getattr(attributes, name) for name in names) if column]


def typed_converter(
    converter_class: type[DatasetConverter],
    default_type: SemanticType,
    rules: RuleSet | None = None,
    are_paths: bool = False,
    has_frames: bool = False,
    cache_dir: str | None = None,
    loss_weights: LossWeightsConfig = LossWeightsConfig(),
) -> type[DatasetConverter]:
    """Return a converter class that also gives every message a type.

    Args:
        converter_class: A registered converter.
        default_type: Type of a message without one.
        rules: Rules for messages without a type of their own; None: there are none.
        are_paths: Whether all media are paths; if not, pictures may be in the data set themselves.
        has_frames: Whether videos are lists of frames.
        cache_dir: Where media of data URIs are written; None: the cache of `datasets`.
        loss_weights: What labels of steps mean, and weights by role.
    """
    name = f"Typed{converter_class.__name__}"
    attributes = {
        "__module__": __name__,
        "default_type": int(default_type),
        "rules": rules,
        "are_paths": are_paths,
        "has_frames": has_frames,
        "cache_dir": cache_dir,
        "loss_weights": loss_weights,
        "options": (
            __version__,  # part of the cache's key, as all of these
            converter_class,
            default_type,
            rules,
            are_paths,
            has_frames,
            cache_dir,
            loss_weights,
        ),
    }
    return type(name, (TypedConverterMixin, converter_class), attributes)


def _converter(version: str, *options: Any) -> DatasetConverter:
    """Return a typed converter without its attributes, which pickle sets."""
    made: DatasetConverter = object.__new__(typed_converter(*options))
    return made


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
