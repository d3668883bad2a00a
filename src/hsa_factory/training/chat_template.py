"""A model's chat template: what transformers renders with it, and the same text traced."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2
from transformers.utils import get_json_schema

from .traced_template import Rendering, render
from .traced_text import UntraceableTemplate


_OURS = (
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "return_dict",
    "return_tensors",
    "padding",
    "truncation",
)
# A template's own, and Python's where it meets a value that it has not foreseen
_REFUSALS = (jinja2.TemplateError, TypeError, AttributeError, LookupError, ValueError)


class ChatTemplate:
    """Renders conversations.

    Args:
        handler: A tokenizer, or a processor that has one.
        tools: JSON schemas, functions, or the JSON text of a list of schemas; None: there are none.
        options: Further arguments of `apply_chat_template`: `chat_template`, `documents`, what the template reads.

    Raises:
        ValueError: If there is no template, or an option is none that training may choose.
    """

    def __init__(self, handler: Any, tools: Any = None, options: Mapping[str, Any] | None = None) -> None:
        self.handler = handler
        self.tokenizer = getattr(handler, "tokenizer", handler)
        self.is_processor = self.tokenizer is not handler
        self.options = dict(options or {})
        for name in _OURS:
            if name in self.options:
                raise ValueError(f"{name} is not to be chosen here: a whole conversation is encoded. Leave it out.")
        self.tools = _read_tools(tools)
        self.source = self._find_source()

    @property
    def name(self) -> str:
        """What errors call it."""
        path = getattr(self.tokenizer, "name_or_path", "") or type(self.handler).__name__
        return f"the chat template of {path!r}"

    def _find_source(self) -> str:
        chosen = self.options.get("chat_template")
        if not self.is_processor:
            return str(self.handler.get_chat_template(chosen, self.tools))
        known = self.handler.chat_template
        if isinstance(known, dict):
            chosen = known.get(chosen or "default", chosen)
        source = chosen or (known if isinstance(known, str) else None)
        if source is None:
            raise ValueError(
                "the processor has no chat template. Set processor.chat_template, or pass chat_template=…"
            )
        return str(source)

    def official(self, messages: Sequence[Mapping[str, Any]], **more: Any) -> Any:
        """Return what `apply_chat_template` returns; the messages stay as they are."""
        copies = [dict(message) for message in messages]
        return self.handler.apply_chat_template(copies, tools=self.tools, **self.options, **more)

    def trace(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> Rendering:
        """Render a conversation, traced.

        Raises:
            ValueError: If the template refuses the conversation, or cannot be followed; it names the template.
        """
        variables = {"documents": None, **self.tokenizer.special_tokens_map, **self.options}
        variables.pop("chat_template", None)
        copies = [self._as_rendered(message) for message in messages]
        try:
            return render(
                self.source, copies, self.tools, {**variables, "add_generation_prompt": add_generation_prompt}
            )
        except UntraceableTemplate as error:
            raise ValueError(f"{self.name} cannot be followed: {error}. Write it without that.") from error
        except _REFUSALS as error:
            raise self._refusal(error) from error

    def trace_whole(self, messages: Sequence[Mapping[str, Any]]) -> Rendering:
        """Render a whole conversation, traced, and make sure that it is what transformers renders.

        Raises:
            ValueError: As `trace`, and if the two differ.
        """
        try:
            official = self.official(messages, tokenize=False, add_generation_prompt=False)
        except _REFUSALS as error:
            raise self._refusal(error) from error
        rendering = self.trace(messages)
        if rendering.text != official:
            place = next(
                (i for i, pair in enumerate(zip(rendering.text, official)) if pair[0] != pair[1]), len(official)
            )
            raise ValueError(
                f"{self.name} cannot be followed: its text differs from transformers' at character {place} "
                f"({rendering.text[place : place + 30]!r}, not {official[place : place + 30]!r})."
            )
        return rendering

    def _refusal(self, error: Exception) -> ValueError:
        if isinstance(error, jinja2.TemplateError):
            return ValueError(f"{self.name} refuses the conversation: {error}")
        return ValueError(
            f"{self.name} does not take the conversation: {type(error).__name__}: {error}. Give each message the keys, and "
            "contents and arguments of the kind (texts, lists of parts, mappings), that the template reads."
        )

    def _as_rendered(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return a message as it reaches the template: a processor writes OpenAI's pictures in its own way."""
        content = message.get("content")
        if not self.is_processor or not isinstance(content, list):
            return dict(message)
        return {**message, "content": [_as_image(part) for part in content]}


def added_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Return a pattern that finds the tokens which a tokenizer never cuts: special ones, and others that were added."""
    names = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    return _any_of(tuple(sorted(names, key=len, reverse=True)))


@lru_cache(maxsize=8)
def _any_of(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def _as_image(part: Any) -> Any:
    if isinstance(part, dict) and part.get("type") == "image_url" and "image_url" in part:
        file = part["image_url"]
        return {"type": "image", "url": file.get("url", "") if isinstance(file, dict) else file}
    return part


def _read_tools(tools: Any) -> list[Any] | None:
    """Return descriptions of tools as a template gets them.

    Raises:
        ValueError: If they are none.
    """
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise ValueError(f"tools: the text is no JSON: {error}") from None
    if tools is None:
        return None
    if not isinstance(tools, (list, tuple)) or not all(isinstance(tool, Mapping) or callable(tool) for tool in tools):
        raise ValueError(f"tools: expected a list of JSON schemas or functions, got {tools!r:.80}.")
    return [get_json_schema(tool) if callable(tool) else tool for tool in tools]
