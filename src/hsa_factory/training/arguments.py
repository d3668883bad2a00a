"""Arguments of `encode_conversation` that would fail late, or be read by nobody."""

from collections.abc import Mapping
from typing import Any

from ..config import FeedbackConfig, HSAConfig
from ..loss_weights import LossWeightsConfig
from ..suggestions import misspelt


_NAMES = ("messages", "config", "feedback", "tools", "max_length", "loss_weights", "processor_kwargs")


def check_arguments(
    handler: Any, config: Any, feedback: Any, loss_weights: Any, chat_template_kwargs: Mapping[str, Any]
) -> None:
    """Refuse arguments of another kind, and misspelt ones, which a template would be given and not read.

    Raises:
        ValueError: Naming the argument.
    """
    if not callable(getattr(handler, "apply_chat_template", None)):
        raise ValueError(
            f"tokenizer_or_processor: expected a tokenizer or a processor with a chat template, got {handler!r:.80}."
        )
    if not isinstance(config, HSAConfig):
        raise ValueError(f"config: expected an HSAConfig, got {config!r:.80}.")
    for name, value, kind in (
        ("feedback", feedback, FeedbackConfig),
        ("loss_weights", loss_weights, LossWeightsConfig),
    ):
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{name}: expected a {kind.__name__} or None, got {value!r:.80}.")
    for name in chat_template_kwargs:
        meant = misspelt(name, _NAMES)
        if meant:
            raise ValueError(f"{name} is no argument of encode_conversation. Did you mean {meant!r}?")
