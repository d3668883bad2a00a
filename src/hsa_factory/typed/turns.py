"""Turn numbers: how many replies are over before a message, and before each token that a template writes for it."""

from collections.abc import Sequence
from itertools import chain, repeat


REPLY_ROLES = frozenset({"assistant", "function"})


def number_messages(roles: Sequence[str]) -> list[int]:
    """Return the turn of each message. A reply is a message of the model's, or several in a row.

    Args:
        roles: Of all messages of a conversation, in order; tool calls may have the role ``function``.

    Example:
        >>> number_messages(["system", "user", "assistant", "observation", "observation", "function", "assistant", "user"])
        [0, 0, 0, 1, 1, 1, 1, 2]
    """
    number, numbers, was_reply = 0, [], False
    for role in roles:
        is_reply = role in REPLY_ROLES
        number += was_reply and not is_reply
        was_reply = is_reply
        numbers.append(number)
    return numbers


def number_prompt(roles: Sequence[str], lengths: Sequence[int], length: int, before: int = 0) -> list[int]:
    """Return the turn of each token of a prompt: that of the message in whose block it stands.

    Args:
        roles: Of its messages, one at least; a system message belongs to the block of the first one.
        lengths: How many tokens the template has written for each of them; further ones are not read.
        length: Tokens of the prompt. What follows the last block (an empty thought) has that one's turn.
        before: Tokens that stand before all of them (pictures), as part of the first message.
    """
    numbers = number_messages(roles)
    blocks = [*lengths[: len(numbers) - 1], 0]
    blocks[-1] = length - sum(blocks)
    return [numbers[0]] * before + list(chain.from_iterable(map(repeat, numbers, blocks)))
