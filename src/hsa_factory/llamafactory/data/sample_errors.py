"""What becomes of a sample that cannot be used: it is left out for a reason that is counted, or the run says which it is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .template import PLACEHOLDERS, describe, place_of


INVALID = "invalid conversation (empty, or roles in a wrong order)"
NO_MARKER = "no feedback marker"
NOTHING_TO_TRAIN = "nothing left to train"
MEDIA_TOO_LONG = "media do not fit into cutoff_len"
TOO_LONG = "longer than cutoff_len"
EMPTY_PROMPT = "empty prompt"
NO_LABEL = "no label (`kto_tag`) that is true or false, or roles in a wrong order"
NOT_TWO_REPLIES = "no two replies to choose between, or roles in a wrong order"


class SampleDropped(Exception):
    """A sample is left out; the argument is the reason."""


@contextmanager
def errors_name(where: str) -> Iterator[None]:
    """Let what goes wrong with a sample say which one it is.

    Raises:
        ValueError: For any exception but `SampleDropped`.
    """
    try:
        yield
    except SampleDropped:
        raise
    except Exception as error:
        raise ValueError(f"{where}: {describe(error)}") from error


def check_contents(messages: Sequence[dict[str, Any]]) -> None:
    """Refuse messages without a text, which LLaMA-Factory cannot encode.

    Raises:
        ValueError: Naming the turn.
    """
    for number, message in enumerate(messages):
        if message["content"] is None:
            raise ValueError(
                f'{place_of(message, number)}: its content is null. Give it a text ("" for none), or leave the sample out.'
            )


def check_media_numbers(messages: Sequence[dict[str, Any]], media: Sequence[Sequence[Any]]) -> None:
    """Refuse a sample whose placeholders are not as many as its media.

    Args:
        messages: All of the sample.
        media: Its images, videos and audios.

    Raises:
        ValueError: With both numbers; LLaMA-Factory's own error holds the whole conversation.
    """
    for placeholder, given in zip(PLACEHOLDERS, media):
        written = sum(message["content"].count(placeholder) for message in messages)
        if written != len(given):
            raise ValueError(
                f"its messages hold {written} {placeholder}, but it has {len(given)} {placeholder[1:-1]}s: there must be one "
                "for each."
            ) from None
