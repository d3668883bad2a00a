"""The models that the Board loads and exports itself, one after another, each with the rules of its time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

from ...config import FeedbackConfig, HSAConfig
from ..state import Integration
from .blocks import OFF, read_blocks


class RulesInForce:
    """Lends the one integration of this process to whoever loads a model.

    Args:
        state: The integration. Where the fields do not say, what it was made with holds.
    """

    def __init__(self, state: Integration) -> None:
        self._state = state
        self._own = (state.hsa, state.feedback_config)
        self._lock = Lock()

    @contextmanager
    def asked_for(self, values: Mapping[str, Any], lang: str) -> Iterator[None]:
        """Let models be loaded as the fields ask for it; others that load one wait.

        Args:
            values: What each field holds, by its name.
            lang: The Board's language.

        Raises:
            UserError: If a field holds what is not allowed.
        """
        blocks = read_blocks(values, lang)
        hsa, feedback = self._own
        if (asked := blocks.get("hsa")) is not None:
            hsa = HSAConfig.from_dict(asked) if isinstance(asked, dict) else asked != OFF
        if "feedback" in blocks:
            feedback = FeedbackConfig.from_dict(blocks["feedback"])
        with self._lock:
            self._state.ask_for(hsa, feedback)
            try:
                yield
            finally:
                self._state.ask_for(*self._own)
