"""Turn numbers of tokens: counted on the whole conversation, then cut as LLaMA-Factory cuts it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...config import HSAConfig
from ...feedback import REPLIES
from ...typed.turns import number_messages


_MOST_TURNS = np.iinfo(np.uint16).max


def has_turns(config: HSAConfig | None) -> bool:
    """Whether the rules of a run need turn numbers; None: there are none."""
    return config is not None and config.has_turns


def has_reply(messages: Sequence[dict[str, Any]]) -> bool:
    """Whether a reply among the messages says anything, or is over, though it says nothing, before another message."""
    return len(messages) > 2 or any(message["role"] in REPLIES and message["content"].strip() for message in messages)


def number_tokens(
    messages: Sequence[dict[str, Any]], first: int, lengths: Sequence[int], in_front: int, behind: int
) -> np.ndarray:
    """Return the turn number of each token that a cut leaves, (n,) int32.

    Args:
        messages: Of the whole sample, the system prompt not among them: it stands with the first.
        first: Index of the first message of which `lengths` say something.
        lengths: Tokens left of each message from there on.
        in_front: Tokens that LLaMA-Factory puts before all messages: they are turn 0.
        behind: Tokens that it adds at the end: they belong to the last turn, or to turn 0 if they are all that is left.
    """
    numbers = number_messages([message["role"] in REPLIES for message in messages])
    turn_ids = np.repeat(np.array(numbers[first : first + len(lengths)], np.int32), lengths)
    if in_front or behind:
        last = np.full(behind, turn_ids[-1] if len(turn_ids) else 0, np.int32)
        turn_ids = np.concatenate([np.zeros(in_front, np.int32), turn_ids, last])
    return turn_ids


def number_prompt(
    messages: Sequence[dict[str, Any]], lengths: Sequence[int], length: int, in_front: int
) -> np.ndarray:
    """Return the turn number of each token of a conversation that the model is to continue, (n,) int32.

    Args:
        messages: Of the prompt, one at least; the system prompt is not among them.
        lengths: How many tokens the template has written for each of them; further ones are not read.
        length: Tokens of the prompt. What follows the last message (an empty thought) has its number.
        in_front: Tokens that LLaMA-Factory has put before them.
    """
    lengths = lengths[: len(messages)]
    return number_tokens(messages, 0, lengths, in_front, length - sum(lengths))


def run_on(turn_ids: np.ndarray, bounds: np.ndarray, starts: np.ndarray, is_padding: np.ndarray) -> np.ndarray:
    """Number rows that are one document each, though several samples stand in it: each begins when replies before it are over.

    Args:
        turn_ids: (n,) int32 numbers of all rows, each sample's for itself.
        bounds: (rows + 1,) where each row begins, and where the last one ends; no row is empty.
        starts: Places at which a sample begins.
        is_padding: (n,) bool.

    Returns:
        (n,) int32 numbers that do not fall within a row.
    """
    steps = np.diff(turn_ids, prepend=0)
    steps[starts] = 1
    steps[is_padding] = 0
    risen = np.cumsum(steps, dtype=np.int64)
    first = bounds[:-1]
    return (risen - np.repeat(risen[first] - turn_ids[first], np.diff(bounds))).astype(np.int32)


def to_stored(turn_ids: np.ndarray) -> np.ndarray:
    """Return turn numbers as a data set stores them, (n,) uint16: two bytes a token.

    Raises:
        ValueError: If a conversation has too many turns for that.
    """
    if turn_ids.max(initial=0) > _MOST_TURNS:
        raise ValueError(
            f"A conversation has {turn_ids.max()} replies, and rules with turns number at most {_MOST_TURNS}: cut it up, or use "
            "windows (`hsa.noise_window`) in place of turns."
        )
    return turn_ids.astype(np.uint16)


def check_replies(without: Sequence[str], config: HSAConfig | None) -> None:
    """Refuse data in which a rule can never hide anything.

    Args:
        without: Names of the data sets in which no sample has a reply: all their tokens are turn 0.
        config: The run's rules; None: there are none.

    Raises:
        ValueError: If a type is seen by its turns alone and there are such data sets; it names both.
    """
    names = ("global", "landmark", "noise")
    limits = zip(names, config.turns, config.windows) if config is not None else ()
    alone = [name for name, turns, window in limits if turns is not None and window is None]
    if without and alone:
        raise ValueError(
            f"No sample of {', '.join(map(repr, without))} has a reply: the assistant's text is empty in all of them. All their "
            f"tokens are turn 0, so that {' and '.join(f'hsa.{name}_turns' for name in alone)} would never hide anything. "
            f"Leave such data out, or set {' and '.join(f'hsa.{name}_window' for name in alone)} in its place."
        )
