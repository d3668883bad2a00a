"""LLaMA-Factory's dataset converters, plus each message's semantic type."""

import os
from typing import Any

from llamafactory.data.converter import DatasetConverter

from .. import __version__
from ..semantics import SemanticType
from .template import TURN_KEY, TYPE_KEY, WEIGHT_KEY


INDEX_COLUMN = "_hsa_index"  # the sample's number in its data set, before and after conversion
SOURCE_COLUMN = "_hsa_dataset"
_PARSED: dict[str, SemanticType] = {}  # names seen so far
SYSTEM_TYPE_COLUMN = "_hsa_system_type"
TYPED_COLUMN = "_hsa_typed_messages"
Turn = tuple[int | str, dict[str, Any]]  # a message of the data and its number (or the column that it stands in)


class TypedConverterMixin:
    """Adds type, weight and turn to every message, whatever the format: all data sets have the same columns and mix.

    Set by the integration on the data set's attributes: `semantic_tag`, `hsa_name`.
    """

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        where = f"dataset {self._name!r}, sample {example.get(INDEX_COLUMN, '?')}"
        try:
            output = super().__call__(example)
        except Exception as error:
            raise ValueError(f"{where}: the sample does not have the expected format ({error!r}).") from error

        messages = output["_prompt"] + output["_response"]
        system, turns = self._turns(example)
        system_type = self._parse_system(system, where)
        types = [_joined([self._parse_type(source, where, turn) for turn, source in sources]) for sources in turns]
        if len(turns) != len(messages):  # alpaca, or a sample that LLaMA-Factory found broken
            turns = [[(turn, {})] for turn in range(len(messages))]
            types = [None] * len(messages)

        for message, semantic_type, sources in zip(messages, types, turns):
            message[TYPE_KEY] = self.default_type if semantic_type is None else int(semantic_type)
            message[WEIGHT_KEY] = min(_parse_weight(source, where, turn) for turn, source in sources)
            message[TURN_KEY] = sources[0][0] if isinstance(sources[0][0], int) else -1

        output[SYSTEM_TYPE_COLUMN] = int(SemanticType.GLOBAL if system_type is None else system_type)
        output[TYPED_COLUMN] = sum(semantic_type is not None for semantic_type in types)
        output[SOURCE_COLUMN] = self._name
        output[INDEX_COLUMN] = int(example.get(INDEX_COLUMN, -1))
        self._check_media(output, where)
        return output

    @property
    def _name(self) -> str:
        return getattr(self.dataset_attr, "hsa_name", self.dataset_attr.dataset_name)

    def _turns(self, example: dict[str, Any]) -> tuple[dict[str, Any] | None, list[list[Turn]]]:
        """Return the data's system message, and for each message that LLaMA-Factory makes those it is made of."""
        attr = self.dataset_attr
        if attr.formatting == "alpaca":
            return None, []

        messages = list(enumerate(example[attr.messages]))
        system = None
        if attr.system_tag and messages and messages[0][1][attr.role_tag] == attr.system_tag:
            system = messages.pop(0)[1]

        turns: list[list[Turn]] = []
        replies: list[Turn] = []
        for turn, message in messages:
            if attr.formatting == "openai" and message[attr.role_tag] == attr.observation_tag:
                replies.append((turn, message))  # LLaMA-Factory joins the replies of parallel calls
                continue
            if replies:
                turns.append(replies)
                replies = []
            turns.append([(turn, message)])

        if getattr(attr, "ranking", False):
            for column in (attr.chosen, attr.rejected):
                reply = example[column]
                turns.append([(column, reply if isinstance(reply, dict) else {})])

        return system, turns

    def _parse_system(self, system: dict[str, Any] | None, where: str) -> SemanticType | None:
        if system is None:
            return None
        if _parse_weight(system, where, 0) == 0 and self.data_args.train_on_prompt:
            raise ValueError(
                f"{where}, turn 0: the system message shares its turn with the first user message, so its weight 0 "
                "cannot be honoured with train_on_prompt. Remove one of them."
            )
        return self._parse_type(system, where, 0)

    def _parse_type(self, message: dict[str, Any], where: str, turn: int | str) -> SemanticType | None:
        tag = getattr(self.dataset_attr, "semantic_tag", None)
        try:
            return _parse(message.get(tag)) if tag else None
        except ValueError as error:
            raise ValueError(f"{where}, turn {turn}: {error}") from None

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


def typed_converter(converter_class: type[DatasetConverter], default_type: SemanticType) -> type[DatasetConverter]:
    """Return a converter class that also gives every message a type.

    Args:
        converter_class: A registered converter.
        default_type: Type of a message without one.
    """
    name = f"Typed{converter_class.__name__}"
    attributes = {"__module__": __name__, "default_type": int(default_type), "version": __version__}
    return type(name, (TypedConverterMixin, converter_class), attributes)


def _parse(value: Any) -> SemanticType | None:
    if value is None or value == "":
        return None
    known = _PARSED.get(value) if isinstance(value, str) else None
    if known is None:
        known = SemanticType.parse(value)
        if isinstance(value, str):
            _PARSED[value] = known
    return known


def _parse_weight(message: dict[str, Any], where: str, turn: int | str) -> int:
    """Read a message's weight: 0 masks it, 1 or none trains it.

    Raises:
        ValueError: If it is anything else.
    """
    value = message.get("weight")
    if value is None:
        return 1
    if value in (0, 1) and not isinstance(value, bool):
        return int(value)
    raise ValueError(
        f"{where}, turn {turn}: weight {value!r} is not allowed: 0 keeps the message out of the loss, 1 or no weight "
        "trains it."
    )


def _joined(types: list[SemanticType | None]) -> SemanticType | None:
    """Return the type of replies that are joined to one message: the one that remembers most."""
    return min((semantic_type for semantic_type in types if semantic_type is not None), default=None)
