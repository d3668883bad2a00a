"""Text that carries semantic types, and the types of the tokens it becomes. `input_ids` never change by it."""

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import regex


_RUN = re.compile(rb"\x00+|\x01+|\x02+|\xff+|(.)\1*", re.DOTALL)  # the usual types first: several times faster


class TypedText(str):
    """A text made of spans, each with a semantic type; equal to the plain text in every other respect.

    Adding, slicing and replacing keep the spans; plain text that is added takes the type it is added to.

    Attributes:
        spans: (number of characters, type) of each span, in order; at least one.
        semantic_type: Type of the message the text belongs to; that of the last span if none is given.
    """

    spans: tuple[tuple[int, int], ...]
    semantic_type: int

    def __new__(
        cls, text: str, semantic_type: int | None = None, spans: Sequence[tuple[int, int]] = ()
    ) -> "TypedText":
        self = super().__new__(cls, text)
        self.spans = tuple(spans) if spans else ((len(text), semantic_type),)
        self.semantic_type = self.spans[-1][1] if semantic_type is None else semantic_type
        return self

    def __add__(self, other: str) -> "TypedText":
        if isinstance(other, TypedText):
            return TypedText(str(self) + str(other), other.semantic_type, self.spans + other.spans)
        return TypedText(str(self) + other, self.semantic_type, (*self.spans, (len(other), self.spans[-1][1])))

    def __radd__(self, other: str) -> "TypedText":
        return TypedText(other + str(self), self.semantic_type, ((len(other), self.spans[0][1]), *self.spans))

    def __getitem__(self, key: Any) -> str:
        if not isinstance(key, slice) or key.step not in (None, 1):
            return str(self)[key]
        return self._with(str(self)[key], self.types()[key])

    def replace(self, old: str, new: str, count: int = -1) -> "TypedText":
        """Replace as `str.replace` does; what is put in takes the type of the first character that it replaces."""
        text, types = str(self), self.types()
        pieces, kinds, position, place = [], [], 0, text.find(old)
        while place >= 0 and old and count != len(kinds) // 2:
            pieces += [text[position:place], new]
            kinds += [types[position:place], types[place : place + 1] * len(new)]
            position = place + len(old)
            place = text.find(old, position)
        return self._with("".join([*pieces, text[position:]]), b"".join([*kinds, types[position:]]))

    def __reduce__(self) -> tuple:
        return (_rebuild, (str(self), self.semantic_type, self.spans))

    def types(self) -> bytes:
        """Return the type of each character."""
        return b"".join(bytes((semantic_type,)) * length for length, semantic_type in self.spans)

    def _with(self, text: str, types: bytes) -> "TypedText":
        return TypedText(text, self.semantic_type, [(end - start, kind) for start, end, kind in find_runs(types)])

    @property
    def is_uniform(self) -> bool:
        """Whether all characters have the message's type."""
        if len(self.spans) == 1:
            return self.spans[0][1] == self.semantic_type or not self
        return {semantic_type for length, semantic_type in self.spans if length} <= {self.semantic_type}


def _rebuild(text: str, semantic_type: int, spans: tuple[tuple[int, int], ...]) -> TypedText:
    return TypedText(text, semantic_type, spans)


def find_runs(types: bytes | bytearray) -> list[tuple[int, int, int]]:
    """Return (start, end, type) of each run of equal types, in order."""
    return [(*run.span(), types[run.start()]) for run in _RUN.finditer(types)]


def without(text: TypedText, parts: Iterable[tuple[int, int]]) -> TypedText:
    """Return a text without some parts, (start, end) in order."""
    kept, position = text[:0], 0
    for start, end in parts:
        kept += text[position:start]
        position = end
    return kept + text[position:]


def carry_types(text: TypedText, changed: str, placeholders: Sequence[str]) -> TypedText:
    """Type a text whose placeholders were replaced by something else, by where the text between them is found again.

    Args:
        text: Before.
        changed: After; what stands in a placeholder's stead takes its type (that of the last of several in a row).
        placeholders: What was replaced.

    Returns:
        `changed`, typed; all of it as the type that remembers most if the text is not found again.
    """
    if isinstance(changed, TypedText):
        return changed

    types, kinds, position, place = text.types(), [], 0, 0
    for match in regex.finditer("|".join(map(regex.escape, placeholders)) + r"|\Z", str(text)):
        before = str(text)[position : match.start()]
        found = changed.find(before, place) if match.group() else len(changed) - len(before)
        found = 0 if position == 0 and match.group() else found
        if found < place or not changed.startswith(before, found):
            return TypedText(changed, min(types, default=text.semantic_type))
        kinds += [types[max(position - 1, 0) : max(position, 1)] * (found - place), types[position : match.start()]]
        position, place = match.end(), found + len(before)
    return text._with(changed, b"".join(kinds))


def type_rendered_text(rendered: str, content: TypedText, start: int | None) -> TypedText:
    """Type a template's rendering of a message: the message's own text keeps its spans, the rest is the message's.

    Args:
        rendered: What the template made of the content.
        content: The message.
        start: Where the content stands in it; None: it does not.

    Returns:
        The rendered text. Where the content was reformatted (a tool call), what it begins with unchanged (a thought)
        keeps its spans.
    """
    if content.is_uniform or start is None:
        return TypedText(rendered, content.semantic_type)

    same = len(content)
    if not rendered.startswith(content, start):
        same = len(os.path.commonprefix([str(content), rendered[start:]]))
    rest = len(rendered) - start - same
    own = content if same == len(content) else content[:same]
    spans = [(start, content.semantic_type), *own.spans, (rest, content.semantic_type)]
    return TypedText(rendered, content.semantic_type, [span for span in spans if span[0]])


def token_types(text: TypedText, offsets: Sequence[tuple[int, int]] | None, number: int) -> bytes:
    """Return the type of each token of a text.

    A token that straddles two spans takes the type that remembers more.

    Args:
        text: The text.
        offsets: (start, end) of each token in it; None: unknown (a slow tokenizer), and then a text of several types
            takes the one that remembers most.
        number: How many tokens it has.
    """
    types = text.types()
    if text.is_uniform or offsets is None:
        return bytes((min(types, default=text.semantic_type),)) * number

    kind, kinds = types[0], bytearray()
    for start, end in offsets:
        covered = types[start:end] or types[start : start + 1]
        if covered:  # else it stands behind the last character, and goes with the token before it
            kind = min(covered)
        kinds.append(kind)
    return bytes(kinds)
