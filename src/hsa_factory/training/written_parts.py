"""Types of the parts of one message, wherever a template writes them: followed through the texts of the message."""

from collections.abc import Mapping
from os.path import commonprefix
from typing import Any

import numpy as np

from ..labeling.trajectories.blocks import read_arguments
from ..labeling.trajectories.composed import DEFAULT_WORDS, REASONING_KEYS
from ..typed.carry import align
from ..typed.text import TypedText
from .traced_text import Run, TracedText, concat, plain
from .traced_values import Path, Sources, TracedDict, TracedList, dump_json, trace_messages


UNKNOWN = 255


class WrittenParts:
    """Types of a message's texts, by their path in the message.

    Rules see a message as one text: thought, content and calls one after the other. Each of its characters is followed back
    to the text of the message that it was taken from.

    Args:
        message: As the user gave it.
        typed: What rules see of it, typed.

    Raises:
        ValueError: If the two do not fit together.
    """

    def __init__(self, message: dict[str, Any], typed: TypedText) -> None:
        self.base = int(typed.semantic_type)
        self.text, self.kinds = str(typed), typed.types()
        self._sources = Sources()
        (traced,) = trace_messages([message], self._sources)
        seen = concat(_seen(traced, self.text))
        if plain(seen) != self.text:
            raise ValueError("the types of its parts cannot be followed through its thought, content and calls.")
        self._places: dict[tuple[int, int], int] = {}  # (leaf, offset) → place in the text
        self._types: dict[int, bytearray] = {}
        self._paths = {path: leaf for leaf, (_, path) in enumerate(self._sources.leaves)}
        self._read(seen)
        self._read_argument_texts(message, typed)

    def _read(self, seen: TracedText) -> None:
        place = 0
        for run in seen.runs:
            if run.leaf >= 0:
                types = self._types.setdefault(run.leaf, bytearray())
                last = run.offset + run.step * (run.length - 1)
                types.extend(bytes((UNKNOWN,)) * (last + 1 - len(types)))
                for number in range(run.length):
                    offset = run.offset + run.step * number
                    types[offset] = min(types[offset], self.kinds[place + number])
                    self._places.setdefault((run.leaf, offset), place + number)
            place += run.length
        self._weaken_containers(seen)

    def _weaken_containers(self, seen: TracedText) -> None:
        """A container has the type of all that stands in it, or else the message's."""
        for leaf, types in self._types.items():
            if len(types) == 1:
                spans = [place for place, run in _placed(seen) if run.leaf == leaf and run.step == 0]
                if len(spans) > 1:
                    inside = set(self.kinds[spans[0] : spans[-1] + 1])
                    types[0] = inside.pop() if len(inside) == 1 else self.base

    def _read_argument_texts(self, message: Mapping[str, Any], typed: TypedText) -> None:
        """Arguments given as a text of JSON were read and written anew for the rules: words that come again keep their types."""
        for number, call in enumerate(message.get("tool_calls") or []):
            path = ("tool_calls", number, "function", "arguments")
            leaf = self._paths.get(path)
            text = call["function"].get("arguments") if isinstance(call, Mapping) else None
            if leaf is None or leaf in self._types or not isinstance(text, str) or not text:
                continue
            written = dump_json(read_arguments(text))
            start = self.text.find(written)
            if start >= 0:
                self._types[leaf] = bytearray(align(typed.part(start, start + len(written)), text).types())

    # -- asking ------------------------------------------------------------------------------------------------

    def types_at(self, path: Path, offsets: np.ndarray) -> np.ndarray:
        """Return the types of characters of one of its texts, uint8.

        Args:
            path: Of the text in the message.
            offsets: Places in the text.
        """
        types = self._types.get(self._paths.get(path, -1))
        if types is None:
            return np.full(len(offsets), self.base, np.uint8)
        known = np.frombuffer(bytes(types) + bytes((UNKNOWN,)), np.uint8)[np.minimum(offsets, len(types))]
        return np.where(known == UNKNOWN, self.base, known)

    def type_of_part(self, number: int) -> int:
        """Return the type of a part of its content that is no text."""
        return int(self.types_at(("content", number), np.zeros(1, np.int64))[0])

    def types_between(self, before: tuple[Path, int] | None, after: tuple[Path, int] | None, written: str) -> bytes:
        """Return the types of what a template writes between two characters of the message.

        As far as it is what stands between them in the message, it has the types that this has there; all else has the
        message's.

        Args:
            before: (path, offset) of the character before; None: it begins the message.
            after: Of the character after; None: it ends the message.
            written: The text.
        """
        first, last = self._place(before), self._place(after)
        own = self.text
        gap_end = last if last is not None and (first is None or last > first) else len(own)
        gap_start = first + 1 if first is not None and (last is None or last > first) else 0
        head = len(commonprefix([own[first + 1 : gap_end], written])) if first is not None else 0
        rest = written[head:]
        tail = len(commonprefix([own[gap_start:last][::-1], rest[::-1]])) if last is not None else 0
        kinds = bytearray((self.base,)) * len(written)
        if first is not None and head:
            kinds[:head] = self.kinds[first + 1 : first + 1 + head]
        if last is not None and tail:
            kinds[len(written) - tail :] = self.kinds[last - tail : last]
        return bytes(kinds)

    def _place(self, character: tuple[Path, int] | None) -> int | None:
        if character is None:
            return None
        path, offset = character
        return self._places.get((self._paths.get(path, -1), offset))


def _seen(message: TracedDict, text: str) -> list[str]:
    """Return what rules see of a message, in pieces that know where they come from."""
    content = message.get("content")
    calls = [call["function"] for call in message.get("tool_calls") or []]
    calls += [message["function_call"]] if message.get("function_call") else []
    if isinstance(content, TracedList) and not _is_json(content, text):
        pieces = [_part(part) for part in content]
    elif isinstance(content, str):
        pieces = [content]
    elif content is not None:
        pieces = [dump_json(content)]
    else:
        pieces = []
    reasoning = _reasoning(message)
    if reasoning is None and not (calls and any(pieces)):
        return pieces if not calls else [dump_json(calls)]

    before = [DEFAULT_WORDS.thought[0], reasoning.strip(), DEFAULT_WORDS.thought[1]] if reasoning is not None else []
    if not calls:
        return [*before, *pieces]
    listed = [{"name": call["name"], "arguments": read_arguments(call.get("arguments") or {})} for call in calls]
    opening, closing = DEFAULT_WORDS.call
    written = dump_json(listed).replace(closing, closing.replace("/", "\\/"))
    ends = content if isinstance(content, str) else ""
    gap = "\n" if content and not ends.endswith("\n") else ""
    return [*before, *pieces, gap + opening, written, closing]


def _reasoning(message: Mapping[str, Any]) -> str | None:
    """Return the thought in a key of its own; None: there is none, or it is not one text."""
    content = message.get("content")
    for key in REASONING_KEYS:
        value = message.get(key)
        if isinstance(value, str) and value.strip():
            return None if isinstance(content, str) and "<think" in content else value
    return None


def _is_json(content: TracedList, text: str) -> bool:
    return plain(dump_json(content)) == text


def _part(part: Any) -> str:
    """Return a part as rules see it: a text, or the placeholder of a medium."""
    if isinstance(part, str):
        return part
    for key in ("text", "refusal"):
        if isinstance(part.get(key), str):
            return str(part[key])
    kind = str(part.get("type") or next(key for key in ("image", "video", "audio") if part.get(key) is not None))
    name = next((kind_name for kind_name in ("image", "video", "audio") if kind_name in kind), kind)
    return TracedText(f"<{name}>", [Run(len(name) + 2, part.hsa_leaf)])


def _placed(text: TracedText) -> list[tuple[int, Run]]:
    placed, place = [], 0
    for run in text.runs:
        placed.append((place, run))
        place += run.length
    return placed
