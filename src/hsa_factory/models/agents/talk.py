"""The conversation of a row, as chat messages: each time the whole is written by the template, and what is new is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jinja2

from ...config import HSAConfig
from .pictures import fetch_pictures
from .reply import Reply


if TYPE_CHECKING:
    from ...training.history import History


@dataclass
class Talk:
    """The chat messages of one row.

    Attributes:
        template: The tokenizer's chat template, with its tools and options.
        messages: All of them, the model's replies included.
        shown: The same, with their pictures, as the template and the processor get them.
        own: Numbers of the replies.
        lead: White space that the template writes before a reply and the model after its prompt (GLM's line break); None: not
            known yet.
    """

    template: Any
    messages: list[dict[str, Any]] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    own: set[int] = field(default_factory=set)
    lead: str | None = None

    def reply(self, reply: Reply, semantic_type: int | None) -> None:
        """Add a reply. `semantic_type`: that it was given; None: as rules say."""
        given = {} if semantic_type is None else {"semantic_type": semantic_type}
        self.lead = self._find_lead() if self.lead is None else self.lead
        self.own.add(len(self.messages))
        message = {"role": "assistant", "content": reply.removeprefix(self.lead), **given}
        self.messages.append(message)
        self.shown.append(message)

    def with_news(self, messages: Sequence[Mapping[str, Any]]) -> "Talk":
        """Return it with further messages.

        Raises:
            ValueError: If a picture cannot be read; names the message.
        """
        shown = fetch_pictures(messages, len(self.shown)) if self.template.is_processor else [*map(dict, messages)]
        return replace(self, messages=[*self.messages, *map(dict, messages)], shown=[*self.shown, *shown])

    def _find_lead(self) -> str:
        try:
            prompt = self.template.official(self.shown, tokenize=False, add_generation_prompt=True)
            whole = self.template.official([*self.shown, {"role": "assistant", "content": "x"}], tokenize=False)
        except jinja2.TemplateError:  # it takes no reply here, which the next message's encoding says
            return ""
        lead: str = whole.removeprefix(prompt).partition("x")[0]
        return lead if whole.startswith(prompt) and lead.isspace() else ""


def new_talk(tokenizer: Any, tools: Any, options: Mapping[str, Any]) -> Talk:
    """Return a conversation without messages.

    Raises:
        ValueError: If the tokenizer has no chat template, or an option is none of a template.
    """
    from ...training.chat_template import ChatTemplate  # a room above, whose encoding must not be written twice

    if not callable(getattr(tokenizer, "apply_chat_template", None)):
        raise ValueError(f"append_messages(): {type(tokenizer).__name__} has no chat template: append texts instead.")
    return Talk(ChatTemplate(tokenizer, tools, options))


def read_messages(row: int, given: Any) -> list[dict[str, Any]]:
    """Return the messages that a row is given: one, or a list.

    Raises:
        ValueError: If they are something else; names the row.
    """
    messages = [given] if isinstance(given, Mapping) else given
    if not isinstance(messages, (list, tuple)) or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError(f"row {row}: expected a chat message, or a list of them, got {given!r:.80}.")
    if not messages:
        raise ValueError(f"row {row}: the list of messages is empty. Pass None where a row gets nothing.")
    return [dict(message) for message in messages]


def encode_talk(talk: Talk, config: HSAConfig) -> "History":
    """Return the tokens of a row's conversation and what follows it.

    Raises:
        ValueError: If a message cannot be read, or not be rendered; names the message.
    """
    from ...training.history import encode_history

    return encode_history(talk.template, talk.shown, config, talk.own)
