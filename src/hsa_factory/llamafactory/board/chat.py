"""The Board's chat: a model is loaded with what the fields ask for, and messages have types."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from llamafactory.chat.hf_engine import HuggingfaceEngine
from llamafactory.extras import logging

from ...models.enable import get_state
from ...semantics import SemanticType
from ...typed.text import TypedText
from ...user_errors import UserError, explain
from ..chat.hf_engine import type_messages
from ..data.template import TYPE_KEY
from .elements import read_fields
from .events import add_inputs
from .fields import TYPES
from .rules_in_force import RulesInForce
from .texts import message


logger = logging.get_logger(__name__)

BY_RULES = "rules"


def load_model(
    rules: RulesInForce, original: Callable[..., Iterator[str]], chatter: Any, data: dict[Any, Any]
) -> Iterator[str]:
    """Load a model with the rules that the fields ask for; what is wrong is said instead of a bare "Error"."""
    lang = data[chatter.manager.get_elem_by_id("top.lang")] or "en"
    try:
        with rules.asked_for(read_fields(chatter.manager, data), lang):
            yield from original(chatter, data)
    except UserError as error:
        yield _warn(str(error))
    except Exception as error:
        logger.error("The model could not be loaded.", exc_info=True)
        yield _warn(message("failed", lang, reason=explain(error)))


def chat_box_with_type(original: Callable[..., tuple], engine: Any, *args: Any, **kwargs: Any) -> tuple:
    """Add the type of the next message, below its role."""
    chatbot, messages, elements = original(engine, *args, **kwargs)
    with elements["role"].parent:
        kind = gr.Dropdown(choices=[BY_RULES, *TYPES], value=BY_RULES)
    add_inputs(engine.chatter.append, [kind])
    return chatbot, messages, {**elements, "semantic_type": kind}


def append_typed(
    original: Callable[..., tuple], chatbot: list, messages: list, role: str, query: str, escape_html: bool, kind: str
) -> tuple:
    """Add what was written to the conversation, with the type that was chosen for it."""
    chatbot, messages, query = original(chatbot, messages, role, query, escape_html)
    if kind != BY_RULES:
        messages = [*messages[:-1], {**messages[-1], TYPE_KEY: kind}]
    return chatbot, messages, query


def stream_typed(
    original: Callable[..., Iterator[tuple]],
    chatter: Any,
    chatbot: list,
    messages: list,
    lang: str,
    system: str,
    *args: Any,
) -> Iterator[tuple]:
    """Answer, and say below each message as what it was read; a refusal is shown, not lost.

    Raises:
        gradio.Error: With the reason.
    """
    engine = chatter.engine
    hsa = get_state(engine.model) if isinstance(engine, HuggingfaceEngine) else None
    try:
        if hsa is not None:
            chatbot[-1] = _marked(chatbot[-1], messages, system, hsa.config)
        elif TYPE_KEY in messages[-1]:
            gr.Warning(message("no_hsa", lang, value=messages[-1][TYPE_KEY]))
        answered = messages
        for chatbot, answered in original(chatter, chatbot, messages, lang, system, *args):
            yield chatbot, answered
        if hsa is not None and answered is not messages:
            chatbot[-1] = _marked(chatbot[-1], answered, system, hsa.config)
            yield chatbot, answered
    except ValueError as error:
        raise gr.Error(str(error)) from error


def _marked(shown: dict[str, Any], messages: list, system: str, config: Any) -> dict[str, Any]:
    """Return a message of the chat window with the types that the last message of a conversation has."""
    typed, _ = type_messages(messages, system or None, config)
    return {**shown, "content": f"{shown['content']}\n\n<sub>{' + '.join(_types_of(typed[-1]['content']))}</sub>"}


def _types_of(text: TypedText) -> list[str]:
    return [SemanticType(kind).name for kind in dict.fromkeys(kind for _, _, kind in text.spans)]


def _warn(text: str) -> str:
    gr.Warning(text)
    return text
