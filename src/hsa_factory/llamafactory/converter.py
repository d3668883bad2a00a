"""LLaMA-Factory's dataset converters, plus each message's semantic type."""

import os
from typing import Any

from llamafactory.data.converter import DatasetConverter

from .. import __version__
from ..semantics import SemanticType
from .template import TYPE_KEY


INDEX_COLUMN = "_hsa_index"  # the sample's number in its data set, before and after conversion
SOURCE_COLUMN = "_hsa_dataset"
_PARSED: dict[str, SemanticType] = {}  # names seen so far
SYSTEM_TYPE_COLUMN = "_hsa_system_type"
TYPED_COLUMN = "_hsa_typed_messages"


class TypedConverterMixin:
    """Adds a type to every message, whatever the format, so that all data sets have the same columns and mix.

    Set by the integration on the data set's attributes: `semantic_tag`, `hsa_name`.
    """

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        where = f"dataset {self._name!r}, sample {example.get(INDEX_COLUMN, '?')}"
        try:
            output = super().__call__(example)
        except Exception as error:
            raise ValueError(f"{where}: the sample does not have the expected format ({error!r}).") from error

        system_type, types = self._message_types(example, where)
        messages = output["_prompt"] + output["_response"]
        if len(types) != len(messages):  # alpaca, or a sample that LLaMA-Factory found broken
            types = [None] * len(messages)

        for message, semantic_type in zip(messages, types):
            message[TYPE_KEY] = self.default_type if semantic_type is None else int(semantic_type)

        output[SYSTEM_TYPE_COLUMN] = int(SemanticType.GLOBAL if system_type is None else system_type)
        output[TYPED_COLUMN] = sum(semantic_type is not None for semantic_type in types)
        output[SOURCE_COLUMN] = self._name
        output[INDEX_COLUMN] = int(example.get(INDEX_COLUMN, -1))
        self._check_media(output, where)
        return output

    @property
    def _name(self) -> str:
        return getattr(self.dataset_attr, "hsa_name", self.dataset_attr.dataset_name)

    def _message_types(
        self, example: dict[str, Any], where: str
    ) -> tuple[SemanticType | None, list[SemanticType | None]]:
        """Read the type of the system message and of each aligned message; None where there is none."""
        attr = self.dataset_attr
        tag = getattr(attr, "semantic_tag", None)
        if attr.formatting == "alpaca" or not tag:
            return None, []

        messages = example[attr.messages]
        system_type, first = None, 0
        if attr.system_tag and messages and messages[0][attr.role_tag] == attr.system_tag:
            system_type, first = self._parse(messages[0].get(tag), where, 0), 1

        types: list[SemanticType | None] = []
        tool_types: list[SemanticType | None] = []
        for turn, message in enumerate(messages[first:], start=first):
            semantic_type = self._parse(message.get(tag), where, turn)
            if attr.formatting != "openai":
                types.append(semantic_type)
            elif message[attr.role_tag] == attr.observation_tag:
                tool_types.append(semantic_type)  # LLaMA-Factory joins the replies of parallel calls
            else:
                types += _joined(tool_types)
                tool_types = []
                types.append(semantic_type)

        if getattr(attr, "ranking", False):
            for column in (attr.chosen, attr.rejected):
                reply = example[column]
                types.append(self._parse(reply.get(tag), where, column) if isinstance(reply, dict) else None)

        return system_type, types

    @staticmethod
    def _parse(value: Any, where: str, turn: int | str) -> SemanticType | None:
        try:
            return _parse(value)
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


def _joined(types: list[SemanticType | None]) -> list[SemanticType | None]:
    """Return the type of several replies joined to one message: the one that remembers most."""
    given = [semantic_type for semantic_type in types if semantic_type is not None]
    return [min(given) if given else None] if types else []
