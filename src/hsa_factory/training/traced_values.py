"""A conversation whose texts know where they stand in it, and JSON that keeps that knowledge."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from .traced_text import NOWHERE, Run, TracedText, concat, plain


Path = tuple[Any, ...]
TOOLS = -2  # stands for a message in the path of what describes the tools
KEY = "\0key"  # in a path: the name itself, not what stands under it


class Sources:
    """All texts and containers of a conversation, by number, and what may be in the course of being written.

    Attributes:
        leaves: (message, path in it) of each text and container.
        blocks: (message, number of the part or None) of what is written as one.
    """

    def __init__(self) -> None:
        self.leaves: list[tuple[int, Path]] = []
        self.blocks: list[tuple[int, int | None]] = []
        self._block_numbers: dict[tuple[int, int | None], int] = {}

    def add_leaf(self, message: int, path: Path) -> int:
        """Return the number of a new text or container."""
        self.leaves.append((message, path))
        return len(self.leaves) - 1

    def block(self, message: int, part: int | None) -> int:
        """Return the number of a message or a part of one."""
        return self._block_numbers.setdefault((message, part), self._new_block(message, part))

    def pending(self) -> int:
        """Return the number of what a loop over numbers has begun to write, before it has asked for a message."""
        self.blocks.append((NOWHERE, None))
        return len(self.blocks) - 1

    def settle(self, pending: int, block: int) -> None:
        """Say what was begun: a message; nothing happens if it is known already."""
        if pending != NOWHERE and self.blocks[pending][0] == NOWHERE:
            self.blocks[pending] = self.blocks[block]

    def _new_block(self, message: int, part: int | None) -> int:
        if (message, part) not in self._block_numbers:
            self.blocks.append((message, part))
        return len(self.blocks) - 1


class TracedDict(dict[Any, Any]):
    """A mapping of a conversation."""

    __slots__ = ("hsa_block", "hsa_leaf")
    hsa_block: int
    hsa_leaf: int


class TracedList(list[Any]):
    """A list of a conversation."""

    __slots__ = ("hsa_leaf",)
    hsa_leaf: int


fetched: ContextVar[Callable[[Any, Any], None] | None] = ContextVar("fetched", default=None)
"""Called with the place and the message whenever a message is asked for by its place."""


class TracedMessages(list[Any]):
    """The messages of a conversation, or some of them."""

    def __getitem__(self, place: Any) -> Any:
        item = super().__getitem__(place)
        if isinstance(place, slice):
            return TracedMessages(item)
        tell = fetched.get()
        if tell is not None:
            tell(place, item)
        return item


def trace_messages(messages: list[Any], sources: Sources) -> list[Any]:
    """Return messages that equal the given ones, all their texts traced."""
    return TracedMessages(_trace(message, number, (), sources) for number, message in enumerate(messages))


def trace_tools(tools: Any, sources: Sources) -> Any:
    """Return descriptions of tools that equal the given ones, all their texts traced."""
    return _trace(tools, TOOLS, (), sources)


def _trace(value: Any, message: int, path: Path, sources: Sources) -> Any:
    if isinstance(value, str):
        return TracedText(value, [Run(len(value), sources.add_leaf(message, path), 0, 1)])
    if isinstance(value, Mapping):
        names_matter = (
            len(path) > 1 or message == TOOLS
        )  # names within calls and tools are written, those of a message are not
        traced = TracedDict(
            (
                _trace(key, message, (*path, KEY, key), sources) if names_matter else key,
                _trace(item, message, (*path, key), sources),
            )
            for key, item in value.items()
        )
        traced.hsa_leaf = sources.add_leaf(message, path)
        part = path[1] if len(path) == 2 and path[0] == "content" else None
        traced.hsa_block = NOWHERE if message == TOOLS else sources.block(message, part)
        return traced
    if isinstance(value, (list, tuple)):
        items = TracedList(_trace(item, message, (*path, place), sources) for place, item in enumerate(value))
        items.hsa_leaf = sources.add_leaf(message, path)
        return items
    return value


def write(value: Any) -> str:
    """Return what `str` makes of a value, traced: texts in lists and mappings stay texts of the conversation."""
    return concat(_literals(value)) if isinstance(value, (TracedDict, TracedList)) else str(value)


def _literals(value: Any) -> Iterator[str]:
    """Yield what `repr` writes of a value, in pieces."""
    if isinstance(value, TracedText):
        yield _quoted(value)
        return
    if not isinstance(value, (TracedDict, TracedList)):
        yield repr(value)
        return
    opening, closing = "{}" if isinstance(value, dict) else "[]"

    def own(text: str) -> TracedText:
        return TracedText(text, [Run(len(text), value.hsa_leaf)])

    yield own(opening)
    for number, item in enumerate(value.items() if isinstance(value, dict) else value):
        if number:
            yield own(", ")
        if isinstance(value, dict):
            name, item = item
            yield _quoted(name) if isinstance(name, TracedText) else own(repr(name))
            yield own(": ")
        yield from _literals(item) if isinstance(item, (TracedText, TracedDict, TracedList)) else [own(repr(item))]
    yield own(closing)


def _quoted(text: TracedText) -> TracedText:
    """Return what `repr` makes of a text; the quotes are none of its characters."""
    whole = repr(plain(text))
    runs = list(text.runs)
    if len(whole) != len(text) + 2:
        quote = whole[0]
        runs = [
            run._replace(
                length=2 if plain(char) == quote else 1 if plain(char) in "'\"" else len(repr(plain(char))) - 2
            )
            for char in text
            for run in char.runs  # type: ignore[attr-defined]
        ]
    return TracedText(whole, [Run(1), *runs, Run(1)])


def dump_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return what `json.dumps` returns, traced: texts stay texts of the conversation, what joins them is their container's."""
    item_end, name_end = separators or (", " if indent is None else ",", ": ")
    indent = " " * indent if isinstance(indent, int) else indent

    def quote(text: str) -> str:
        whole = json.dumps(plain(text), ensure_ascii=ensure_ascii)
        if not isinstance(text, TracedText) or not text.runs:
            return whole
        runs = list(text.runs)
        if len(whole) != len(text) + 2:
            runs = [
                run._replace(length=len(json.dumps(plain(char), ensure_ascii=ensure_ascii)) - 2)
                for char in text
                for run in char.runs  # type: ignore[attr-defined]
            ]
        quotes = Run(1)  # they are none of the text's characters
        return TracedText(whole, [quotes, *runs, quotes])

    def pieces(value: Any, level: int) -> Iterator[str]:
        if isinstance(value, str):
            yield quote(value)
            return
        if not isinstance(value, (Mapping, list, tuple)) or not value:
            yield own(value, json.dumps(value, ensure_ascii=ensure_ascii))
            return
        opening, closing = "{}" if isinstance(value, Mapping) else "[]"
        inner, outer = ("", "") if indent is None else ("\n" + indent * (level + 1), "\n" + indent * level)
        yield own(value, opening + inner)
        if isinstance(value, Mapping):
            items = sorted(value.items()) if sort_keys else list(value.items())
        else:
            items = [(None, item) for item in value]
        for number, (key, item) in enumerate(items):
            if number:
                yield own(value, item_end + inner)
            if isinstance(value, Mapping):
                yield quote(key) if isinstance(key, str) else own(value, json.dumps({key: 0})[1:-4])
                yield own(value, name_end)
            if isinstance(item, (str, Mapping, list, tuple)):
                yield from pieces(item, level + 1)
            else:
                yield own(value, json.dumps(item, ensure_ascii=ensure_ascii))
        yield own(value, outer + closing)

    def own(container: Any, text: str) -> str:
        leaf = getattr(container, "hsa_leaf", None)
        return text if leaf is None else TracedText(text, [Run(len(text), leaf)])

    return concat(pieces(value, 0))
