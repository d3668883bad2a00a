"""Whether LLaMA-Factory trains a conversation: it wants the two sides in turn, the user's first and a reply last."""

from collections.abc import Sequence

from .formats import DatasetFormat, SampleMessage


_SIDES = {"user": "user", "observation": "user", "assistant": "reply", "function": "reply"}
NO_MESSAGES = "no messages"
LATE_SYSTEM = "a system message after the first message"
REPLY_FIRST = "a reply comes first"
NO_REPLY_LAST = "what comes last is no reply"
REPLY_LAST = "the prompt of a ranking ends with a reply"
IN_A_ROW = {"user": "two messages of the user's side in a row", "reply": "two replies in a row"}


def broken_order(turns: Sequence[SampleMessage], dataset_format: DatasetFormat) -> str | None:
    """Return why LLaMA-Factory leaves a sample out; None: it does not.

    Args:
        turns: As `read_sample` returns them.
        dataset_format: The data set's. In `openai`, replies of tools in a row are one message.
    """
    if dataset_format.formatting == "alpaca":
        return None
    roles = [turn.message.role for turn in turns if turn.number >= 0]
    if roles and roles[0] == "system" and dataset_format.system_tag:
        roles = roles[1:]
    sides: list[str | None] = []
    before = None
    for role in roles:
        if not (role == before == "observation" and dataset_format.formatting == "openai"):
            sides.append(_SIDES.get(role))
        before = role
    if before == "observation" and dataset_format.formatting == "openai":
        sides.pop()  # LLaMA-Factory trains what comes before
    return _find_fault(sides, dataset_format.ranking)


def _find_fault(sides: list[str | None], is_ranking: bool) -> str | None:
    if not sides:
        return NO_MESSAGES
    if None in sides:
        return LATE_SYSTEM
    if sides[0] == "reply":
        return REPLY_FIRST
    for first, second in zip(sides, sides[1:]):
        if first == second and second is not None:
            return IN_A_ROW[second]
    if sides[-1] == ("reply" if is_ranking else "user"):
        return REPLY_LAST if is_ranking else NO_REPLY_LAST
    return None
