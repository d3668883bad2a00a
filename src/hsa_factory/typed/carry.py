"""Types carried over to a text that something has changed: a processor, a chat template, a removed thought."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from .spans import find_runs
from .text import TypedText


_WORD = r"[A-Za-z0-9_]+|\s+|."


def carry_types(text: TypedText, changed: str, placeholders: Sequence[str]) -> TypedText:
    """Type a text whose placeholders were replaced by something else, by where the text between them is found again.

    Args:
        text: Before.
        changed: After; what stands in a placeholder's stead takes its type (that of the last of several in a row).
        placeholders: What was replaced.

    Returns:
        `changed`, typed; where the text between placeholders was changed, too, as `align` types it.
    """
    if isinstance(changed, TypedText):
        return changed
    if text.is_uniform:
        return TypedText(changed, text.semantic_type, is_guessed=text.is_guessed)

    types, kinds, position, place = text.types(), bytearray(), 0, 0
    for match in re.finditer("|".join([*map(re.escape, placeholders), r"\Z"]), str(text)):
        before = str(text)[position : match.start()]
        found = changed.find(before, place) if match.group() else len(changed) - len(before)
        found = 0 if position == 0 and match.group() else found
        if found < place or not changed.startswith(before, found):
            return align(text, changed, placeholders)
        kinds += types[max(position - 1, 0) : max(position, 1)] * (found - place)
        kinds += types[position : match.start()]
        position, place = match.end(), found + len(before)
    return TypedText(changed, text.semantic_type, find_runs(kinds), text.is_guessed)


def type_rendered_text(rendered: str, content: TypedText, start: int | None, end: int | None) -> TypedText:
    """Type a template's rendering of a message: the message's own text keeps its spans, the rest is the message's.

    Args:
        rendered: What the template made of the content.
        content: The message.
        start: Where the content begins in it; None: it does not stand in it.
        end: Where it ends; None with `start`.

    Returns:
        The rendered text. Where the content was reformatted (a tool call), as `align` types it.
    """
    if content.is_uniform or start is None or end is None:
        return TypedText(rendered, content.semantic_type, is_guessed=content.is_guessed and start is not None)

    own = content
    if rendered[start:end] != content:
        own = align(content, rendered[start:end], added=content.semantic_type)
    before = TypedText(rendered[:start], content.semantic_type)
    return before + own + TypedText(rendered[end:], content.semantic_type)


def align(text: TypedText, changed: str, placeholders: Sequence[str] = (), added: int | None = None) -> TypedText:
    """Type a changed text: words that are found again in the same order keep their types.

    Args:
        text: Before.
        changed: After.
        placeholders: Parts of the text before that are not looked for in pieces.
        added: Type of what was put in between; None: that of the text around it that remembers more.

    Returns:
        `changed`, typed. What replaces words of one type has that type. What replaces words of several types has the
        one among them that remembers most, and the text is then marked as guessed.
    """
    types, kinds, is_guessed = text.types(), bytearray(), text.is_guessed
    words, starts = _split(str(text), placeholders)
    new_words, new_starts = _split(changed, ())
    for change, first, last, new_first, new_last in SequenceMatcher(None, words, new_words).get_opcodes():
        own = types[starts[first] : starts[last]]
        length = new_starts[new_last] - new_starts[new_first]
        if change == "equal":
            kinds += own
        elif change == "replace":
            kinds += bytes((min(own),)) * length
            is_guessed |= min(own) != max(own)
        elif change == "insert":
            place = starts[first]
            around = types[max(place - 1, 0) : place + 1]
            kinds += bytes((min(around, default=text.semantic_type) if added is None else added,)) * length
    return TypedText(changed, text.semantic_type, find_runs(kinds), is_guessed)


def _split(text: str, whole: Sequence[str]) -> tuple[list[str], list[int]]:
    """Split a text into words, and return where each begins, and where the last one ends."""
    pattern = "|".join([*map(re.escape, whole), _WORD])
    words = re.findall(pattern, text, re.DOTALL)
    starts = [0]
    for word in words:
        starts.append(starts[-1] + len(word))
    return words, starts
