"""Which feedback of a trajectory becomes a pair."""

from dataclasses import dataclass

from ..config import FeedbackConfig


OCCURRENCES = ("every", "first", "last")
FAILED = ("follow", "drop", "keep")


@dataclass(frozen=True)
class PairOptions:
    """Which feedback becomes a pair, and what is its correction.

    Args:
        token: The marker of feedback.
        occurrence: ``every`` feedback of a trajectory, or only the ``first`` or ``last``.
        scope: Role of the messages in which a marker counts: ``user``, ``observation``, ``assistant`` or ``function``;
            None: any.
        failed: What happens where the correction is followed by a marker itself: ``follow`` takes the first reply after it
            that is not, ``drop`` makes no pair, ``keep`` takes the correction as it is.

    Raises:
        ValueError: If a value is not allowed.
    """

    token: str = FeedbackConfig.token
    occurrence: str = "every"
    scope: str | None = None
    failed: str = "follow"

    def __post_init__(self) -> None:
        try:
            FeedbackConfig(token=self.token, occurrence=self.occurrence, scope=self.scope)
        except ValueError as error:
            raise ValueError(str(error).replace("FeedbackConfig", "PairOptions")) from None
        if self.failed not in FAILED:
            raise ValueError(f"PairOptions.failed = {self.failed!r} is not allowed: one of {', '.join(FAILED)}.")
