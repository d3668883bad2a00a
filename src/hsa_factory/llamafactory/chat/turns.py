"""Turn numbers of a chat's prompt, which come from its messages."""

from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

from ...feedback import REPLIES
from ...typed.turns import number_messages


def number_prompt(
    messages: Sequence[dict[str, Any]], lengths: Sequence[int], length: int, in_front: int = 0
) -> list[int]:
    """Return the turn of each token of a prompt: that of the message in whose block it stands.

    Args:
        messages: LLaMA-Factory's, one at least; the system prompt belongs to the block of the first one.
        lengths: How many tokens the template has written for each of them; further ones are not read.
        length: Tokens of the prompt. What follows the last block (an empty thought) has that one's turn.
        in_front: Tokens that stand before them (pictures), as part of the first message.
    """
    numbers = number_messages(message["role"] in REPLIES for message in messages)
    blocks = [*lengths[: len(numbers) - 1], 0]
    blocks[-1] = length - sum(blocks)
    return [numbers[0]] * in_front + list(chain.from_iterable(map(repeat, numbers, blocks)))
