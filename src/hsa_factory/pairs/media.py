"""Images, videos and audio clips of a prompt: the first files of their columns, as many as the prompt has places for."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..labeling.rule import MEDIA
from .conversation import Conversation, Turn


class MediaPlaces:
    """Which files of a sample belong to the messages before a place in it.

    Args:
        conversation: The sample.
        columns: Column by kind: ``image``, ``video``, ``audio``.

    Raises:
        ValueError: If a column holds another number of files than the messages have places for; names the column.
    """

    def __init__(self, conversation: Conversation, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self.files: dict[str, list[Any]] = {}
        self.before: dict[str, list[int]] = {}
        for kind, column in columns.items():
            given = conversation.rest.get(column)
            if given is None:
                given = []
            files = given if isinstance(given, list) else [given]
            counts = [_places(turn, kind) for turn in conversation.turns]
            if sum(counts) != len(files):
                raise ValueError(
                    f"{column}: there are {len(files)} files, but {sum(counts)} places for them (<{kind}>) in the messages."
                )
            self.files[column] = files
            self.before[column] = [sum(counts[:number]) for number in range(len(counts) + 1)]

    def first_files(self, message: int) -> dict[str, list[Any]]:
        """Return the files of the messages before one, by column."""
        return {column: files[: self.before[column][message]] for column, files in self.files.items()}

    def has_media(self, turns: Sequence[Turn], start: int, stop: int) -> bool:
        """Whether a part of a text, the same of each turn, holds media."""
        return any(
            any(start <= place < stop for place, *_ in turn.read.media)
            or any(f"<{kind}>" in turn.read.message.text[start:stop] for kind in self.columns)
            for turn in turns
        )


def _places(turn: Turn, kind: str) -> int:
    """Return how many files of its column a message takes; parts that name a file need none."""
    if turn.read.message.role == "system":
        return 0
    named = sum(other == kind for _, other, _ in turn.read.media)
    return turn.read.message.text.count(f"<{kind}>") - named


def media_columns(columns: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of media among those of an entry of ``dataset_info.json``, by kind."""
    return {kind: columns[f"{kind}s"] for kind in MEDIA if columns.get(f"{kind}s")}
