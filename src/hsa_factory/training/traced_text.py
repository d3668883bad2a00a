"""Text that knows, character by character, which text of a conversation it was taken from.

A chat template cuts, strips, joins and rewrites the texts of a conversation. It does so with the methods of `str`; these do
the same here and keep account. A method that cannot keep account is refused: nothing is lost silently.
"""

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn, SupportsIndex


NOWHERE = -1


class UntraceableTemplate(ValueError):
    """A chat template does something with a text after which nobody knows where its characters come from."""


class Run(NamedTuple):
    """Characters in a row.

    Attributes:
        length: How many.
        leaf: Number of the text that they were taken from; `NOWHERE`: the template wrote them.
        offset: Place of the first one in that text.
        step: 1: each stands for the next character of that text; 0: all for the one at `offset`.
        block: Number of the message, or part of one, that was being written; `NOWHERE`: not known yet.
    """

    length: int
    leaf: int = NOWHERE
    offset: int = 0
    step: int = 0
    block: int = NOWHERE

    def part(self, start: int, end: int) -> "Run":
        """Return the characters between two places of the run."""
        return Run(end - start, self.leaf, self.offset + self.step * start, self.step, self.block)


current_block: ContextVar[int] = ContextVar("current_block", default=NOWHERE)
"""What is being written, while a template is rendered."""


class TracedText(str):
    """A text made of runs; equal to the plain text in every other respect.

    Args:
        text: The text.
        runs: Their lengths add up to the text's.
    """

    runs: tuple[Run, ...]

    def __new__(cls, text: str, runs: Iterable[Run] = ()) -> "TracedText":
        self = super().__new__(cls, text)
        self.runs = tuple(run for run in runs if run.length)
        return self

    def __str__(self) -> str:
        return self  # what `str(…)` in a template returns

    # -- cutting -----------------------------------------------------------------------------------------------

    def part(self, start: int, end: int) -> "TracedText":
        """Return the text between two places, 0 ≤ start ≤ end ≤ length."""
        runs, place = [], 0
        for run in self.runs:
            first, last = max(start - place, 0), min(end - place, run.length)
            if first < last:
                runs.append(run.part(first, last))
            place += run.length
            if place >= end:
                break
        return TracedText(str.__getitem__(self, slice(start, end)), runs)

    def __getitem__(self, key: SupportsIndex | slice) -> "TracedText":
        if not isinstance(key, slice):
            place = range(len(self))[key]
            return self.part(place, place + 1)
        start, stop, step = key.indices(len(self))
        if step == 1:
            return self.part(start, max(start, stop))
        return join(TracedText(""), (self.part(place, place + 1) for place in range(start, stop, step)))

    def __iter__(self) -> Iterator[str]:
        return (self.part(place, place + 1) for place in range(len(self)))

    def strip(self, chars: str | None = None) -> "TracedText":
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> "TracedText":
        return self.part(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None) -> "TracedText":
        return self.part(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> "TracedText":
        return self.part(len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> "TracedText":
        return self.part(0, len(str.removesuffix(self, suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.split(self, sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.rsplit(self, sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = self._located(str.splitlines(self, True), 0)
        return lines if keepends else [line[: len(str.splitlines(line)[0])] for line in lines]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, middle, _ = str.partition(self, sep)
        return self._in_three(len(before), len(middle))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, middle, _ = str.rpartition(self, sep)
        return self._in_three(len(before), len(middle))

    def _in_three(self, first: int, middle: int) -> tuple[str, str, str]:
        return self.part(0, first), self.part(first, first + middle), self.part(first + middle, len(self))

    def _located(self, pieces: list[str], gap: int) -> list[str]:
        """Return pieces in order as parts of this text, at least `gap` characters between them."""
        parts: list[str] = []
        place = 0
        for piece in pieces:
            place = str.find(self, piece, place)
            parts.append(self.part(place, place + len(piece)))
            place += len(piece) + gap
        return parts

    # -- joining and changing ----------------------------------------------------------------------------------

    def __add__(self, other: Any) -> "TracedText":
        return concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> "TracedText":
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, number: SupportsIndex) -> "TracedText":
        return concat([self] * number.__index__())

    __rmul__ = __mul__

    def join(self, texts: Iterable[str], /) -> "TracedText":
        return join(self, texts)

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> "TracedText":  # type: ignore[override]
        pieces: list[str] = []
        position, place, left = 0, str.find(self, old), count.__index__()
        if not old:
            return self if not new or left == 0 else refuse("replace('', …)")
        while place >= 0 and left != 0:
            pieces += [self.part(position, place), self._put_in(new, place)]
            position = place + len(old)
            place, left = str.find(self, old, position), left - 1
        return concat([*pieces, self.part(position, len(self))])

    def _put_in(self, new: str, place: int) -> str:
        """Return what replaces the characters at a place: it comes from there."""
        if isinstance(new, TracedText):
            return new
        run = self.part(place, place + 1).runs[0]
        return TracedText(new, [run._replace(length=len(new), step=0)])

    def upper(self) -> "TracedText":
        return self._changed(str.upper(self), "upper")

    def lower(self) -> "TracedText":
        return self._changed(str.lower(self), "lower")

    def capitalize(self) -> "TracedText":
        return self._changed(str.capitalize(self), "capitalize")

    def title(self) -> "TracedText":
        return self._changed(str.title(self), "title")

    def swapcase(self) -> "TracedText":
        return self._changed(str.swapcase(self), "swapcase")

    def _changed(self, text: str, method: str) -> "TracedText":
        return TracedText(text, self.runs) if len(text) == len(self) else refuse(method)

    def __format__(self, form: str) -> str:
        return refuse("a format string")

    def __reduce__(self) -> tuple[type, tuple[str, tuple[Run, ...]]]:
        return (TracedText, (plain(self), self.runs))


def _refused(method: str) -> Callable[..., NoReturn]:
    def refused(self: TracedText, *args: Any, **kwargs: Any) -> NoReturn:
        refuse(method)

    return refused


for _method in (
    "casefold",
    "center",
    "encode",
    "expandtabs",
    "format",
    "format_map",
    "ljust",
    "rjust",
    "translate",
    "zfill",
):
    setattr(TracedText, _method, _refused(_method))
setattr(TracedText, "__mod__", _refused("%"))
setattr(TracedText, "__rmod__", _refused("%"))


def refuse(what: str) -> NoReturn:
    """Say that a template does what cannot be followed.

    Raises:
        UntraceableTemplate: Always.
    """
    raise UntraceableTemplate(f"it changes a message's text by {what}")


def plain(text: str) -> str:
    """Return a text as a plain `str`, whatever it carries."""
    return text if type(text) is str else str.__getitem__(text, slice(None))


def runs_of(text: str) -> tuple[Run, ...]:
    """Return a text's runs; a plain one was written by the template, for what is being written."""
    return text.runs if isinstance(text, TracedText) else (Run(len(text), block=current_block.get()),)


def concat(texts: Iterable[str]) -> TracedText:
    """Join texts. What is not known to belong to a message yet belongs to the one that is being written."""
    pieces = list(texts)
    return stamp(TracedText("".join(map(plain, pieces)), [run for piece in pieces for run in runs_of(piece)]))


def join(separator: str, texts: Iterable[str]) -> TracedText:
    """Join texts with a separator between them."""
    pieces: list[str] = []
    for text in texts:
        pieces += [separator, text]
    return concat(pieces[1:])


def stamp(text: str) -> TracedText:
    """Return a text whose characters belong to what is being written, where they belong to nothing yet."""
    block = current_block.get()
    if isinstance(text, TracedText) and (block == NOWHERE or all(run.block != NOWHERE for run in text.runs)):
        return text
    return TracedText(
        plain(text), [run._replace(block=block) if run.block == NOWHERE else run for run in runs_of(text)]
    )
