"""The options of HSA and Feedback as fields of the Board: what each is called, holds and means in a training file."""

from dataclasses import dataclass, fields
from typing import Any

from ...config import ROLES, FeedbackConfig, HSAConfig


MODE, FEEDBACK = "hsa_mode", "feedback_on"
SAVED_MODE, ON_MODE, OFF_MODE = "saved", "on", "off"
OTHER_OPTIONS = "hsa_options"
KINDS, LIMITS = ("global", "landmark", "noise"), ("decay", "window", "turns")
TYPES = ("GLOBAL", "LANDMARK", "NOISE")
LIKE_DEFAULT, ANY_ROLE = "default_type", "any"


@dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
        name: Of the element, and of its texts.
        block: `hsa` or `feedback`.
        option: What it sets there.
        initial: Its value in a fresh Board; with it the option is left out of the training file.
        choices: What it may hold; empty: any text.
        allows_more: Whether it may hold another text than the choices.
    """

    name: str
    block: str
    option: str
    initial: Any = ""
    choices: tuple[str, ...] = ()
    allows_more: bool = False

    @property
    def is_number(self) -> bool:
        """Whether it holds a decay, a window or turns, as text."""
        return self.option.endswith(LIMITS)

    @property
    def is_decay(self) -> bool:
        """Whether it is a number that need not be whole."""
        return self.option.endswith("decay")


def _feedback(option: str, *choices: str) -> Field:
    default = next(field.default for field in fields(FeedbackConfig) if field.name == option)
    return Field(f"feedback_{option}", "feedback", option, ANY_ROLE if default is None else default, choices)


FIELDS = (
    Field("hsa_rules", "hsa", "rules", allows_more=True),
    Field("hsa_default_type", "hsa", "default_type", "GLOBAL", TYPES),
    Field("hsa_generated_type", "hsa", "generated_type", LIKE_DEFAULT, (LIKE_DEFAULT, *TYPES)),
    *(Field(f"hsa_{kind}_{limit}", "hsa", f"{kind}_{limit}") for kind in KINDS for limit in LIMITS),
    _feedback("token"),
    _feedback("occurrence", "first", "last", "every"),
    _feedback("missing", "train", "drop", "error"),
    _feedback("empty", "drop", "error"),
    _feedback("scope", ANY_ROLE, *ROLES),
    _feedback("train", "after", "recovery"),
)
"""All that set one option each."""

INITIAL: dict[str, Any] = {
    MODE: SAVED_MODE,
    FEEDBACK: False,
    OTHER_OPTIONS: "{}",
    **{field.name: field.initial for field in FIELDS},
}
"""What every field holds in a fresh Board: plain LLaMA-Factory, unless a checkpoint was saved with HSA."""


def placeholder(field: Field) -> str:
    """Return what holds where a number is left empty."""
    default = getattr(HSAConfig(), field.option)
    return "none" if default is None else f"{default:g}"
