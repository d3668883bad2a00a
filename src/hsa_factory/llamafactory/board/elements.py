"""The accordion of HSA and Feedback, which holds for all tabs, as the elements above them do."""

from collections.abc import Iterable
from typing import Any

import gradio as gr

from ...labeling.rule_set import preset_names
from .fields import (
    FEEDBACK,
    FIELDS,
    INITIAL,
    KINDS,
    MODE,
    OFF_MODE,
    ON_MODE,
    OTHER_OPTIONS,
    SAVED_MODE,
    Field,
    placeholder,
)


PREFIX = "top"
"""LLaMA Board's name of the part above its tabs."""


def top_with_options(original: Any) -> dict[str, Any]:
    """Put the accordion below LLaMA-Factory's own elements; what is not switched on stays folded."""
    elements = original()
    with gr.Accordion(open=False) as tab:
        with gr.Row():
            mode = gr.Radio(choices=[SAVED_MODE, ON_MODE, OFF_MODE], value=INITIAL[MODE])
            feedback = gr.Checkbox(value=INITIAL[FEEDBACK])
        with gr.Column(visible=False) as hsa_options:
            with gr.Row():
                own = _create_all(f for f in FIELDS if f.block == "hsa" and not f.is_number)
                other = gr.Textbox(value=INITIAL[OTHER_OPTIONS])
            for kind in KINDS:
                with gr.Row():
                    own |= _create_all(f for f in FIELDS if f.is_number and f.option.startswith(kind))
        with gr.Row(visible=False) as feedback_options:
            own |= _create_all(f for f in FIELDS if f.block == "feedback")
    mode.change(lambda value: gr.Column(visible=value == ON_MODE), [mode], [hsa_options], queue=False)
    feedback.change(lambda value: gr.Row(visible=bool(value)), [feedback], [feedback_options], queue=False)
    return {**elements, "hsa_tab": tab, MODE: mode, FEEDBACK: feedback, OTHER_OPTIONS: other, **own}


def base_elements(original: Any, manager: Any) -> set[Any]:
    """Let all tabs read the fields, with the other elements above them; so they are saved and restored as well."""
    return {*original(manager), *option_elements(manager).values()}


def option_elements(manager: Any) -> dict[str, Any]:
    """Return the elements of our fields by name."""
    return {name: manager.get_elem_by_id(f"{PREFIX}.{name}") for name in INITIAL}


def read_fields(manager: Any, data: dict[Any, Any]) -> dict[str, Any]:
    """Return what our fields hold, by name, of what an event has read."""
    return {name: data[element] for name, element in option_elements(manager).items()}


def _create_all(fields: Iterable[Field]) -> dict[str, Any]:
    return {field.name: _create(field) for field in fields}


def _create(field: Field) -> Any:
    if field.option == "rules":
        return gr.Dropdown(choices=["", *preset_names()], value=field.initial, allow_custom_value=True)
    if field.choices:
        return gr.Dropdown(choices=list(field.choices), value=field.initial)
    return gr.Textbox(value=field.initial, placeholder=placeholder(field) if field.is_number else None)
