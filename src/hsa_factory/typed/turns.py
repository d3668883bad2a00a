"""Turn numbers of messages: how many replies are over before each."""

from collections.abc import Iterable


def number_messages(is_reply: Iterable[bool]) -> list[int]:
    """Return each message's turn number: that of the next reply, which may be several messages in a row.

    Args:
        is_reply: Of each message of a conversation, whether it is (a part of) a reply.

    Example:
        >>> number_messages([False, True, True, False, False, True])
        [0, 0, 0, 1, 1, 1]
    """
    numbers, number, was_reply = [], 0, False
    for replies in is_reply:
        number += was_reply and not replies
        numbers.append(number)
        was_reply = replies
    return numbers
