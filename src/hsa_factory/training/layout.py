"""Which message each character of a rendered conversation belongs to."""

from collections.abc import Iterator

import numpy as np

from .chat_template import ChatTemplate, added_tokens
from .messages import Conversation
from .traced_template import Rendering
from .traced_text import NOWHERE


# Of a message, or a part: written in headers, no content.
_HEADER_KEYS = ("role", "name", "type", "recipient", "channel")


class Layout:
    """A rendered conversation, character by character.

    Attributes:
        rendering: What it is made of.
        speakers: (characters,) int32, message whose content each was taken from; `NOWHERE`: the template wrote it.
        writers: (characters,) int32, message that each belongs to.
        added: Characters at the start that stand before any message: a default system prompt, or special tokens.
    """

    def __init__(self, rendering: Rendering) -> None:
        self.rendering = rendering
        self.speakers = _speakers(rendering)
        self.writers, self.added = _writers(rendering, self.speakers)

        self._own = np.flatnonzero(self.speakers != NOWHERE)
        at_home = np.flatnonzero((self.speakers == self.writers) & (self.speakers != NOWHERE))
        self._firsts = _first_places(self.writers, np.arange(len(self.writers)))
        self._firsts_own = _first_places(self.writers[at_home], at_home)
        self._ends = _ends(self.writers, np.arange(len(self.writers)))
        self._ends_own = _ends(self.writers[at_home], at_home)

    @property
    def text(self) -> str:
        """All of it."""
        return self.rendering.text

    def first(self, writer: int) -> int | None:
        """Return where a message begins; None: the template has left it out."""
        return self._firsts.get(writer)

    def end(self, writer: int) -> int:
        """Return where a message ends that the template has not left out."""
        return self._ends[writer]

    def first_own(self, message: int) -> int:
        """Return where the content of a message begins within it, or else where the message ends."""
        return self._firsts_own.get(message, self._ends[message])

    def closing(self, message: int) -> str:
        """Return what the template writes behind the content of a message that it has not left out."""
        start = self._ends_own.get(message, self._firsts[message])
        return self.text[start : self._ends[message]]

    def last_own(self, end: int | None = None) -> int:
        """Return where the last content before a place ends; 0: there is none. None: before the end of all."""
        number = len(self._own) if end is None else int(np.searchsorted(self._own, end))
        return int(self._own[number - 1]) + 1 if number else 0


def _first_places(writers: np.ndarray, places: np.ndarray) -> dict[int, int]:
    """Return the first of some places that belongs to each writer."""
    found, first = np.unique(writers, return_index=True)
    return dict(zip(found.tolist(), places[first].tolist()))


def _ends(writers: np.ndarray, places: np.ndarray) -> dict[int, int]:
    """Return the place after the last of some places that belongs to each writer."""
    return {writer: -place + 1 for writer, place in _first_places(writers[::-1], -places[::-1]).items()}


def _speakers(rendering: Rendering) -> np.ndarray:
    own = [message if message >= 0 and _is_content(path) else NOWHERE for message, path in rendering.sources.leaves]
    return np.array([*own, NOWHERE], np.int32)[rendering.leaves]


def _is_content(path: tuple) -> bool:
    is_header = len(path) == 1 and path[0] in _HEADER_KEYS
    is_kind = len(path) == 3 and path[0] == "content" and path[2] == "type"
    return not is_header and not is_kind


def _writers(rendering: Rendering, speakers: np.ndarray) -> tuple[np.ndarray, int]:
    blocks = np.array([*(message for message, _ in rendering.sources.blocks), NOWHERE], np.int32)
    writers = blocks[rendering.blocks]
    added = 0
    for start, end in _regions(writers == NOWHERE):
        own = speakers[start:end]
        heard = list(dict.fromkeys(own[own != NOWHERE].tolist()))
        if len(heard) > 1 and max(heard) > 1:
            raise ValueError(
                "the chat template writes messages outside any loop over the messages, so that nobody can tell where one ends "
                "and the next begins. Write it with a loop: {% for message in messages %}."
            )
        if heard:
            places = np.flatnonzero(own != NOWHERE)
            nearest = np.maximum(np.searchsorted(places, np.arange(end - start), "right") - 1, 0)
            writers[start:end] = own[places[nearest]]
        elif start:
            writers[start:end] = writers[start - 1]
        else:
            writers[start:end] = writers[end] if end < len(writers) else 0
            added = end
    return writers, added


def _regions(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist())


def default_prompt_end(layout: Layout, conversation: Conversation, template: ChatTemplate) -> int:
    """Return where a system prompt ends that the template writes by itself, before the first message; 0: it writes none.

    Special tokens alone (a BOS) are none.
    """
    if conversation.facts[0].role == "system":
        return 0
    end = layout.added
    if end < len(layout.text):
        own = layout.first_own(int(layout.writers[end]))
        front, header = layout.text[end:own], _header(conversation, template)
        if header and front.endswith(header):
            end += len(front) - len(header)
        elif not header:  # what stands outside the loop over messages
            end += int(np.count_nonzero(np.cumprod(layout.rendering.blocks[end:own] == NOWHERE)))
    words = added_tokens(template.tokenizer).sub("", layout.text[:end])
    return end if words.strip() else 0


def _header(conversation: Conversation, template: ChatTemplate) -> str:
    """Return what the template writes before the content of the first message where it follows a system prompt."""
    first = conversation.messages[0]
    as_parts = isinstance(first.get("content"), list)
    system, text = ([{"type": "text", "text": word}] if as_parts else word for word in ("x", "y"))
    try:
        probe = Layout(
            template.trace([{"role": "system", "content": system}, {"role": first["role"], "content": text}])
        )
    except ValueError:  # it takes no system prompt, and so writes none
        return ""
    start = probe.first(1)
    return "" if start is None else probe.text[start : probe.first_own(1)]
