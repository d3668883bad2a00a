"""`integrate`: a context in which any LLaMA-Factory call trains with HSA and Feedback."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from llamafactory.extras.env import VERSION
from llamafactory.extras.packages import is_fastapi_available

from ..config import FeedbackConfig, HSAConfig
from ..hosts import LLAMAFACTORY_ADVISED, LLAMAFACTORY_RANGE, is_known_llamafactory
from ..loss_weights import LossWeightsConfig
from .chat.hf_engine import chat_seams
from .data.loader import data_seams
from .model.checkpoint import SAVED
from .model.loader import model_seams
from .seams import Seam, installed
from .state import Integration
from .train.tuner import train_seams


if is_fastapi_available():
    from .chat.api import api_seams


_active: Integration | None = None


def all_seams(state: Integration) -> list[Seam]:
    """Return everything of LLaMA-Factory that is replaced while an integration is installed, room by room."""
    seams = [*data_seams(state), *model_seams(state), *train_seams(state), *chat_seams(state)]
    if is_fastapi_available():
        seams += api_seams()
    return seams


@contextmanager
def integrate(
    hsa: HSAConfig | bool | str | None = None,
    feedback: FeedbackConfig | None = None,
    loss_weights: LossWeightsConfig | None = None,
    context_parallel: int = 1,
) -> Iterator[Integration]:
    """Install HSA and Feedback into LLaMA-Factory for the duration of a `with` block.

    Args:
        hsa: The rules; True takes over those of the checkpoint, else the defaults; ``"saved"`` takes over those of the
            checkpoint, and is no HSA if it has none. False: no HSA; None: no HSA, and a warning if a checkpoint has it.
        feedback: None: labels stay as they are.
        loss_weights: What labels of steps mean, and weights by role; None: the defaults.
        context_parallel: How many consecutive processes share the tokens of each row in training; 1: each has whole rows.

    Yields:
        The integration; its `report` holds the counts once data has been prepared.

    Raises:
        RuntimeError: If this version of LLaMA-Factory is not known, a seam is not what it should be, or another
            integration with other settings is installed.
    """
    global _active
    if hsa is None and feedback is None and loss_weights is None:
        raise ValueError("integrate: give hsa, feedback or loss_weights, or several.")
    if type(context_parallel) is not int or context_parallel < 1:
        raise ValueError(f"integrate: context_parallel = {context_parallel!r} is not allowed: a whole number ≥ 1.")
    if not isinstance(hsa, (HSAConfig, bool, type(None))) and hsa != SAVED:
        raise ValueError(f"integrate: hsa = {hsa!r} is not allowed: an HSAConfig, True, False, {SAVED!r} or None.")
    if not is_known_llamafactory(VERSION):
        raise RuntimeError(
            f"LLaMA-Factory {VERSION} is not known to hsa-factory (known: {LLAMAFACTORY_RANGE}). Install a known "
            f"version: pip install llamafactory=={LLAMAFACTORY_ADVISED}"
        )
    if _active is not None:
        wanted = (hsa, feedback, loss_weights or LossWeightsConfig(), context_parallel)
        active = (_active.hsa, _active.feedback_config, _active.loss_weights, _active.context_parallel)
        if active != wanted:
            raise RuntimeError("hsa-factory is already integrated with other settings; leave that block first.")
        yield _active
        return

    state = Integration(hsa, feedback, loss_weights, context_parallel)
    state.integrated = partial(integrate, hsa, feedback, loss_weights, context_parallel)
    with installed(all_seams(state)), _shown_log():
        _active = state
        try:
            yield state
        finally:
            _active = None


class _AsTheirs(logging.Handler):
    """Hands records to the handlers of LLaMA-Factory, those too that a run adds later, as for the log of its Board."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        for handler in logging.getLogger("llamafactory").handlers:
            if record.levelno >= handler.level:
                handler.handle(record)


@contextmanager
def _shown_log() -> Iterator[None]:
    """Show this package's log the way LLaMA-Factory shows its own, which covers its own modules only."""
    package = logging.getLogger("hsa_factory")
    former_level, added = package.level, _AsTheirs()
    package.addHandler(added)
    package.setLevel(logging.getLogger("llamafactory").level)
    try:
        yield
    finally:
        package.setLevel(former_level)
        package.removeHandler(added)
