"""Types of a tool call that a formatter writes anew: every value of it is followed through the formatter by a mark.

A formatter reads the call's JSON and writes names and values in another order, escaped otherwise and with other text
around them. So the same call is written once more with a mark in the place of each name and value: where a mark comes
out, there its text stands, however often the same text occurs.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from os.path import commonprefix
from typing import NamedTuple

from .spans import Span, find_runs
from .text import TypedText


Words = Sequence[str] | None  # what stands before and after something; None or empty: nothing does

_FIRST, _LAST = 0xF0000, 0x10FFFD  # of planes that are free for private use: marks of texts
_NUMBER = "7315"  # what a mark begins with that JSON and formatters take for a number
_MARK = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]|{_NUMBER}[0-9]{{12}}")
_TOKEN = re.compile(
    r'"(?P<text>(?:[^"\\]|\\.)*)"(?P<key>\s*:)?|(?P<number>-?[0-9][0-9.eE+-]*|true|false|null|NaN|-?Infinity)|[\[\]{}]',
    re.DOTALL,
)
_PAIR = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(rf"{_PAIR}|\\u[0-9a-fA-F]{{4}}|\\.", re.DOTALL)


class _Leaf(NamedTuple):
    """A name, a value, or text beside the call.

    Attributes:
        start: Where it begins in the content.
        end: Where it ends.
        pieces: Its text as JSON reads it, cut where the type changes, each piece with its type.
        is_number: Whether it is no text for JSON.
    """

    start: int
    end: int
    pieces: tuple[tuple[str, int], ...]
    is_number: bool = False

    @property
    def text(self) -> str:
        return "".join(piece for piece, _ in self.pieces)

    def forms(self) -> Iterator[list[tuple[str, int]]]:
        """Yield its pieces as a formatter may write them, the longest first."""
        if self.is_number:
            ((text, semantic_type),) = self.pieces
            value = json.loads(text)
            yield from ([(form, semantic_type)] for form in (json.dumps(value), str(value)))
            return
        forms = [list(self.pieces)]
        for _ in range(2):  # a text, and a text within a text
            forms.append([(_escape(piece), semantic_type) for piece, semantic_type in forms[-1]])
        yield from reversed(forms)


def type_tool_call(
    content: TypedText,
    written: str,
    write: Callable[[str], str],
    call_words: Words = None,
    thought_words: Words = None,
) -> tuple[TypedText, int]:
    """Type a tool call that was written anew.

    Args:
        content: The call as the data has it: JSON, perhaps with a thought, or with other text beside call words.
        written: What the formatter has made of it.
        write: The formatter; it may raise what it likes.
        call_words: What may stand before and after the JSON, with other text beside it.
        thought_words: What may stand before and after a thought.

    Returns:
        `written`, typed, and how many parts of the content, which have another type than the message, were not found
        again. Names, values, thoughts and other texts keep their types wherever they stand now; so does what joins them,
        as far as it is the same. All else has the type of the message.
    """
    text, types = str(content), content.types()
    leaves = list(_find_leaves(text, types, call_words, thought_words))
    parts = [span for span in content.spans if span[2] != content.semantic_type]
    places = _follow(text, written, write, leaves)
    if places is None:
        kinds, lost = _search(text, written, parts, content.semantic_type)
    else:
        painter = _Painter(text, types, content.semantic_type, leaves)
        kinds = painter.paint(written, places)
        lost = sum(not painter.has_found(start, end) for start, end, _ in parts)
    return TypedText(written, content.semantic_type, find_runs(kinds), content.is_guessed), lost


# -- the content -----------------------------------------------------------------------------------------------


def _find_leaves(text: str, types: bytes, call_words: Words, thought_words: Words) -> Iterator[_Leaf]:
    """Yield names, values and the text beside the call, in order."""
    start, end, beside = _find_call(text, call_words, thought_words)
    yield from (_verbatim(text, types, *place) for place in beside if place[1] <= start)
    depth, call_depth = 0, None
    for token in _TOKEN.finditer(text, start, end):
        if token["text"]:
            is_own_key = token["key"] is not None and depth == call_depth  # "name" and "arguments": read by name
            if not is_own_key:
                yield _read_text(text, types, *token.span("text"))
        elif token["number"]:
            first, last = token.span()
            yield _Leaf(first, last, ((token["number"], min(types[first:last])),), is_number=True)
        elif token[0] in "{[":
            depth += 1
            call_depth = depth if call_depth is None and token[0] == "{" else call_depth
        elif token[0] in "}]":
            depth -= 1
    yield from (_verbatim(text, types, *place) for place in beside if place[0] >= end)


def _find_call(text: str, call_words: Words, thought_words: Words) -> tuple[int, int, list[tuple[int, int]]]:
    """Return where the JSON is, and the places beside it whose text is written as it is."""
    if call := _between(text, call_words):
        beside = [(0, call.start()), (call.end(), len(text))]
        return *call.span(1), [place for place in beside if place[0] < place[1]]
    if thought := _between(text, thought_words):
        is_first = not text[: thought.start()].strip()
        place = (thought.end(), len(text)) if is_first else (0, thought.start())
        return *place, [thought.span(1)] if thought[1] else []
    return 0, len(text), []


def _between(text: str, words: Words) -> re.Match[str] | None:
    if not words or len(words) != 2:
        return None
    return re.search(f"{re.escape(words[0])}(.*?){re.escape(words[1])}", text, re.DOTALL)


def _verbatim(text: str, types: bytes, start: int, end: int) -> _Leaf:
    runs = find_runs(types[start:end])
    return _Leaf(start, end, tuple((text[start + first : start + last], kind) for first, last, kind in runs))


def _read_text(text: str, types: bytes, start: int, end: int) -> _Leaf:
    """Read a text of JSON; a character that it writes as an escape is one thing, of one type."""
    own, kinds = text[start:end], bytearray(types[start:end])
    for escape in _ESCAPE.finditer(own):
        first, last = escape.span()
        kinds[first:last] = bytes((min(kinds[first:last]),)) * (last - first)
    return _Leaf(start, end, tuple((_unescape(own[first:last]), kind) for first, last, kind in find_runs(kinds)))


def _unescape(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:  # then the formatter cannot read the call either
        return text


def _escape(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


# -- following the marks ---------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where the leaf of a number stands in what was written: it begins at `start`, piece by piece (length, type)."""

    number: int
    start: int
    pieces: Sequence[tuple[int, int]]

    @property
    def end(self) -> int:
        return self.start + sum(length for length, _ in self.pieces)


def _follow(text: str, written: str, write: Callable[[str], str], leaves: Sequence[_Leaf]) -> list[_Place] | None:
    """Return the places of leaves, in the order of writing; None if marks cannot tell."""
    if len(leaves) > _LAST - _FIRST or _MARK.search(text):
        return None
    # A formatter may sort the names: marks have the order of the texts that they stand for.
    order = sorted(range(len(leaves)), key=lambda number: (leaves[number].text, number))
    try:
        probe = write(_mark(text, leaves, order))
    except Exception:  # the formatter has read this call before: it is the marks that it cannot take
        return None

    places: list[_Place] = []
    position = place = 0
    for match in _MARK.finditer(probe):
        between, mark = probe[position : match.start()], match.group()
        rank = ord(mark) - _FIRST if len(mark) == 1 else int(mark[len(_NUMBER) :])
        if rank >= len(order) or not written.startswith(between, place):
            return None
        place, position = place + len(between), match.end()
        forms = leaves[order[rank]].forms()
        pieces = next((form for form in forms if written.startswith("".join(piece for piece, _ in form), place)), None)
        if pieces is None:
            return None
        places.append(_Place(order[rank], place, [(len(piece), kind) for piece, kind in pieces]))
        place = places[-1].end
    return places if written[place:] == probe[position:] else None


def _mark(text: str, leaves: Sequence[_Leaf], order: Sequence[int]) -> str:
    """Return the content with a mark in the place of each leaf."""
    marks = {
        number: f"{_NUMBER}{rank:012d}" if leaves[number].is_number else chr(_FIRST + rank)
        for rank, number in enumerate(order)
    }
    pieces, position = [], 0
    for number, leaf in enumerate(leaves):
        pieces += [text[position : leaf.start], marks[number]]
        position = leaf.end
    return "".join([*pieces, text[position:]])


class _Painter:
    """Types what was written, and notes what of the content was found in it.

    Args:
        text: The content.
        types: The type of each of its characters.
        base: Type of the message.
        leaves: Those of the content, in order.
    """

    def __init__(self, text: str, types: bytes, base: int, leaves: Sequence[_Leaf]) -> None:
        self.text, self.types, self.base, self.leaves = text, types, base, leaves
        self._leaf, self._found = bytearray(len(text)), bytearray(len(text))  # for each character, whether

    def has_found(self, start: int, end: int) -> bool:
        """Whether anything of a part was found: any of its names and values, or, if it has none, anything else."""
        found = self._found[start:end]
        if 1 in self._leaf[start:end]:
            return any(map(int.__and__, found, self._leaf[start:end]))
        return 1 in found

    def paint(self, written: str, places: Sequence[_Place]) -> bytes:
        """Return the type of each character that was written."""
        for leaf in self.leaves:
            self._leaf[leaf.start : leaf.end] = b"\x01" * (leaf.end - leaf.start)
        kinds = bytearray()
        before, end = -1, 0
        for place in [*places, _Place(len(self.leaves), len(written), ())]:
            kinds += self._join(before, place.number, written[end : place.start])
            for length, kind in place.pieces:
                kinds += bytes((kind,)) * length
            before, end = place.number, place.end
        for place in places:
            self._note(self.leaves[place.number].start, self.leaves[place.number].end)
        return bytes(kinds)

    def _join(self, before: int, after: int, written: str) -> bytes:
        """Type what was written between two leaves by what follows the one and precedes the other in the content."""
        first, first_end = self._gap(before)
        last_start, last = self._gap(after - 1)
        head = len(commonprefix([self.text[first:first_end], written]))
        if after == before + 1:
            last_start = first + head
        rest = written[head:]
        tail = len(commonprefix([self.text[last_start:last][::-1], rest[::-1]]))
        self._note(first, first + head)
        self._note(last - tail, last)

        middle = self.base
        if after == before + 1:  # what was put in has the type of what it replaces, or stands in the middle of
            start, end = first + head, last - tail
            is_inside = 0 < start < len(self.text)
            replaced = self.types[start:end] or (self.types[start - 1 : start + 1] if is_inside else b"")
            if len(set(replaced)) == 1:
                middle = replaced[0]
                self._note(start, end)
        middles = bytes((middle,)) * (len(rest) - tail)
        return self.types[first : first + head] + middles + self.types[last - tail : last]

    def _gap(self, number: int) -> tuple[int, int]:
        """Return where the text between a leaf (-1: the start) and the next begins and ends."""
        start = self.leaves[number].end if number >= 0 else 0
        return start, self.leaves[number + 1].start if number + 1 < len(self.leaves) else len(self.text)

    def _note(self, start: int, end: int) -> None:
        self._found[start:end] = b"\x01" * (end - start)


# -- without marks ---------------------------------------------------------------------------------------------


def _search(text: str, written: str, parts: Sequence[Span], base: int) -> tuple[bytes, int]:
    """Type what was written by the parts that stand in it, and in the content, once: as they are or as JSON has them."""
    kinds, taken, lost = bytearray((base,)) * len(written), bytearray(len(written)), 0
    for start, end, kind in parts:
        part = text[start:end]
        forms = {part, _escape(part), _unescape(part)}
        places = {(place, place + len(form)) for form in forms for place in _occurrences(form, written)}
        if len(places) != 1 or len(_occurrences(part, text)) != 1 or any(taken[slice(*min(places))]):
            lost += 1
            continue
        ((first, last),) = places
        kinds[first:last] = bytes((kind,)) * (last - first)
        taken[first:last] = b"\x01" * (last - first)
    return bytes(kinds), lost


def _occurrences(part: str, text: str) -> list[int]:
    return [match.start() for match in re.finditer(f"(?={re.escape(part)})", text)] if part else []
