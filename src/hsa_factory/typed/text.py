"""Text that carries semantic types, and the types of the tokens it becomes. `input_ids` never change by it."""

from collections.abc import Iterable, Sequence
from typing import SupportsIndex

from .spans import Span, fill_gaps, find_runs, shift


class TypedText(str):
    """A text made of spans, each with a semantic type; equal to the plain text in every other respect.

    Adding, slicing and replacing keep the spans; plain text that is added takes the type it is added to.

    Args:
        text: The text.
        semantic_type: Type of the message the text belongs to, and of what no span covers.
        spans: Types of parts of the text; none: all of it has the message's type.
        is_guessed: Whether the types of a part are not known for sure, because the text was changed on the way.

    Attributes:
        spans: Those of the whole text, without a gap; at least one.
    """

    semantic_type: int
    spans: tuple[Span, ...]
    is_guessed: bool

    def __new__(
        cls, text: str, semantic_type: int, spans: Sequence[Span] = (), is_guessed: bool = False
    ) -> "TypedText":
        self = super().__new__(cls, text)
        length = len(self)
        self.spans = tuple(fill_gaps(spans, length, semantic_type)) if spans else ((0, length, semantic_type),)
        self.semantic_type = semantic_type
        self.is_guessed = is_guessed
        return self

    def __add__(self, other: str) -> "TypedText":
        if not isinstance(other, TypedText):
            other = TypedText(other, self.spans[-1][2])
            semantic_type = self.semantic_type
        else:
            semantic_type = other.semantic_type
        spans = [*self.spans, *shift(other.spans, len(self))]
        return TypedText(str(self) + str(other), semantic_type, spans, self.is_guessed or other.is_guessed)

    def __radd__(self, other: str) -> "TypedText":
        spans = [(0, len(other), self.spans[0][2]), *shift(self.spans, len(other))]
        return TypedText(other + str(self), self.semantic_type, spans, self.is_guessed)

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if not isinstance(key, slice) or key.step not in (None, 1):
            return str(self)[key]
        return self._with(str(self)[key], self.types()[key])

    def part(self, start: int, end: int) -> "TypedText":
        """Return the text between two positions."""
        return self._with(str(self)[start:end], self.types()[start:end])

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> "TypedText":
        """Replace as `str.replace` does; what is put in takes the type of what it replaces: of several, as `align` does."""
        text, types = str(self), self.types()
        pieces: list[str] = []
        kinds: list[bytes] = []
        position, place, is_guessed = 0, text.find(old), self.is_guessed
        while place >= 0 and old and int(count) != len(kinds) // 2:
            pieces += [text[position:place], new]
            replaced = types[place : place + len(old)]
            kinds += [types[position:place], bytes((min(replaced),)) * len(new)]
            is_guessed |= min(replaced) != max(replaced)
            position = place + len(old)
            place = text.find(old, position)
        spans = find_runs(b"".join([*kinds, types[position:]]))
        return TypedText("".join([*pieces, text[position:]]), self.semantic_type, spans, is_guessed)

    def __reduce__(self) -> tuple[type, tuple[str, int, tuple[Span, ...], bool]]:
        return (TypedText, (str(self), self.semantic_type, self.spans, self.is_guessed))

    def types(self) -> bytes:
        """Return the type of each character."""
        return b"".join(bytes((semantic_type,)) * (end - start) for start, end, semantic_type in self.spans)

    def _with(self, text: str, types: bytes) -> "TypedText":
        return TypedText(text, self.semantic_type, find_runs(types), self.is_guessed)

    @property
    def is_uniform(self) -> bool:
        """Whether all characters have the message's type."""
        if len(self.spans) == 1:
            return self.spans[0][2] == self.semantic_type or not self
        return {semantic_type for _, _, semantic_type in self.spans} == {self.semantic_type}


def without(text: TypedText, parts: Iterable[tuple[int, int]]) -> TypedText:
    """Return a text without some parts, (start, end) in order."""
    kept, position = text.part(0, 0), 0
    for start, end in parts:
        kept += text.part(position, start)
        position = end
    return kept + text.part(position, len(text))


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
