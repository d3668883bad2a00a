"""The Board's Export tab: models are exported with the rules that the fields ask for."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import llamafactory.webui.components.export as export
from llamafactory.extras import logging

from ...user_errors import UserError, explain
from .elements import option_elements
from .events import add_inputs
from .fields import INITIAL
from .rules_in_force import RulesInForce
from .texts import message


logger = logging.get_logger(__name__)


def export_tab_with_options(original: Callable[..., dict[str, Any]], engine: Any) -> dict[str, Any]:
    """Let the tab's button hand over our fields, too."""
    elements = original(engine)
    add_inputs(export.save_model, list(option_elements(engine.manager).values()))
    return elements


def save_model(rules: RulesInForce, original: Callable[..., Iterator[str]], *values: Any) -> Iterator[str]:
    """Export a model with the rules that the fields ask for; what is wrong is said instead of a bare "Error"."""
    theirs, ours = values[: -len(INITIAL)], values[-len(INITIAL) :]
    lang = theirs[0] or "en"
    try:
        with rules.asked_for(dict(zip(INITIAL, ours)), lang):
            yield from original(*theirs)
        return
    except UserError as error:
        text = str(error)
    except Exception as error:
        logger.error("The model could not be exported.", exc_info=True)
        text = message("failed", lang, reason=explain(error))
    gr.Warning(text)
    yield text
