"""XML-like elements in text, as models write them: `<name>…</name>`, nested, unclosed, among text that is no XML."""

import re
from collections.abc import Sequence
from functools import cache


def find_elements(text: str, names: Sequence[str]) -> list[tuple[int, int, int, int]]:
    """Find the outermost elements of some names, in order.

    An element begins at an opening tag (attributes are allowed, ``<name=value>`` too, ``<name/>`` is none) and ends at its closing tag;
    elements of the same name inside it are part of it. An element that is not closed reaches to the end of the text.
    A closing tag without an opening one is plain text. Elements of several names are looked for independently of each
    other, so theirs may overlap. Names are case-sensitive.

    Args:
        text: Any text.
        names: Names of elements, without ``<`` and ``>``.

    Returns:
        (start, end, start of the inner text, end of the inner text) of each, in characters.
    """
    elements = []
    for name in names:
        if f"<{name}" not in text:
            continue
        depth = start = inner_start = 0
        for tag in _tag_pattern(name).finditer(text):
            if tag.group("closing") is None:
                if depth == 0:
                    start, inner_start = tag.span()
                depth += 1
            elif depth:
                depth -= 1
                if depth == 0:
                    elements.append((start, tag.end(), inner_start, tag.start()))
        if depth:
            elements.append((start, len(text), inner_start, len(text)))

    return sorted(elements) if len(names) > 1 else elements


@cache
def _tag_pattern(name: str) -> re.Pattern[str]:
    # An attribute's value holds no < or >, so that "<a" in running text cannot swallow what follows it.
    return re.compile(rf"<(?P<closing>/)?{re.escape(name)}(?:[\s=][^<>]*)?(?<!/)>")
