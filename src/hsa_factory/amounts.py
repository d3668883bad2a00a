"""Numbers with the word for what they count, in messages."""


def amount(number: int, word: str) -> str:
    """Return a number and a word, in the plural unless it is one: ``1 sample``, ``1,200 samples``.

    Args:
        number: How many.
        word: What they are, in the singular; what takes an s at its end in the plural.
    """
    return f"{number:,} {word if number == 1 else f'{word}s'}"
