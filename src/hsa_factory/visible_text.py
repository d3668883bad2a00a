"""Text of unknown origin for a terminal or a page: what would act on the screen, or hide, is shown by its number."""

import regex


# Besides control characters: what Unicode says to leave unseen (joiners, bidirectional controls, fillers, tags), line
# separators, and halves of characters, which cannot be written.
_UNSEEN = r"[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\p{Bidi_Control}\uFFF9-\uFFFB]"
# A joiner or variation selector is part of the letter or sign before it in many scripts and in emoji.
_PART_OF_A_SIGN = (
    r"(?<=[^\p{ASCII}\p{Cc}\p{Cs}\p{Z}\p{Default_Ignorable_Code_Point}][\uFE00-\uFE0F]?)[\u200C\u200D]"
    r"|(?<=[^\p{ASCII}\p{Cc}\p{Cs}\p{Z}\p{Default_Ignorable_Code_Point}]|[0-9#*](?=\uFE0F\u20E3))[\uFE00-\uFE0F]"
)
_HIDDEN = regex.compile(rf"(?!{_PART_OF_A_SIGN})(?![\n\t]){_UNSEEN}")
_NOT_IN_JSON = regex.compile(_UNSEEN)


def show_hidden(text: str) -> str:
    """Return a text with its control and invisible characters shown as ``<U+001B>``; line feeds and tabs stay.

    It neither moves the cursor, nor changes colours or the direction of writing, and it can be encoded. Joiners and
    variation selectors that belong to the sign before them stay.
    """
    return text if text.isascii() and text.isprintable() else _HIDDEN.sub(_named, text)


def show_hidden_line(text: str) -> str:
    """Return a text for one line of a table or title: line feeds and tabs are shown, too."""
    return show_hidden(text).replace("\n", "<U+000A>").replace("\t", "<U+0009>")


def escape_hidden(serialized: str) -> str:
    r"""Return the same JSON, one line, with such characters as ``\u…`` escapes: it reads as before."""
    return _NOT_IN_JSON.sub(_escaped, serialized)


def _named(match: "regex.Match[str]") -> str:
    return f"<U+{ord(match[0]):04X}>"


def _escaped(match: "regex.Match[str]") -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
