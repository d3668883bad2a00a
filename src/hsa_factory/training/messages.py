"""What the data and the rules say about each message of a conversation: its role, its types, how much it is trained.

All of it is decided by the code that decides it for data of LLaMA-Factory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import HSAConfig
from ..feedback import REPLIES
from ..labeling.formats import DatasetFormat, SampleMessage, read_sample, type_sample
from ..labeling.matching import MessageTypes
from ..labeling.parts import SPANS_KEY
from ..labeling.rule import ROLES
from ..labeling.rule_set import RuleSet
from ..labeling.trainable import as_texts, check_content
from ..labeling.trajectories.composed import DEFAULT_WORDS, fit_message, must_compose, other_role
from ..loss_weights import LossWeightsConfig, weigh_turn
from ..semantics import SemanticType
from ..suggestions import did_you_mean, misspelt
from ..typed.text import TypedText
from .written_parts import WrittenParts


FORMAT = DatasetFormat(
    formatting="openai",
    messages="messages",
    role_tag="role",
    content_tag="content",
    user_tag="user",
    assistant_tag="assistant",
    observation_tag="tool",
    function_tag="function_call",
    system_tag="system",
    semantic_tag="semantic_type",
)
_NAMES = {role: name for name, role in FORMAT.roles.items()}
_TYPE_KEYS = (str(FORMAT.semantic_tag), SPANS_KEY)
_OTHER_NAMES = {**ROLES, "model": "assistant", "ipython": "observation"}


@dataclass
class MessageFacts:
    """What is known of one message.

    Attributes:
        role: `system`, `user`, `assistant`, `function` (a reply that calls tools) or `observation`.
        where: What an error calls it.
        semantic_type: Its type: that of all its characters, but for `parts`.
        weight: How much it is trained; None: as its role is.
        parts: Types of its parts; None: all of it has its type.
    """

    role: str
    where: str
    semantic_type: int
    weight: float | None
    parts: WrittenParts | None = None

    @property
    def is_reply(self) -> bool:
        """Whether the model learns to write it."""
        return self.role in REPLIES


@dataclass
class Conversation:
    """A conversation as it is trained.

    Attributes:
        messages: As the user gave them.
        facts: One for each.
        tools_type: Type of the description of tools: that of the system prompt's end.
    """

    messages: list[dict[str, Any]]
    facts: list[MessageFacts] = field(default_factory=list)
    tools_type: int = int(SemanticType.GLOBAL)


def read_conversation(
    messages: Sequence[Mapping[str, Any]], config: HSAConfig, loss_weights: LossWeightsConfig
) -> Conversation:
    """Read a conversation.

    Args:
        messages: Chat messages as `apply_chat_template` takes them. Each may have `semantic_type`, `semantic_spans`,
            parts of its content with `semantic_type`, and a weight (`weight`, `loss`, `loss_mask`, `loss_weight`,
            `trainable`, `step_label`).
        config: Its rules and default type.
        loss_weights: What labels of steps mean, and weights by role.

    Raises:
        ValueError: If a message cannot be trained; it names the turn, counted from 0, and the key.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(f"messages: expected a list of messages, got {messages!r:.80}.")
    if not messages:
        raise ValueError("messages: the conversation is empty.")
    given = [dict(message) if isinstance(message, Mapping) else message for message in messages]
    for number, message in enumerate(given):
        _refuse_misspelt(message, number)
    fitted = [_fit(message, number) for number, message in enumerate(given)]
    sample = as_texts({FORMAT.messages: fitted}, FORMAT, None)
    turns = read_sample(sample, FORMAT)
    for turn in turns:
        check_content(turn, FORMAT)
        if turn.message.role == "system" and (turn.source or {}).get("content") is None:
            raise ValueError(f"{turn.where}: 'content' is null: give the system message a text, or remove it.")
    rules = None if config.rules is None else RuleSet.parse(config.rules)
    typings = type_sample(turns, FORMAT, rules)
    conversation = Conversation(given)
    for message, turn, typing in zip(given, turns, typings):
        conversation.facts.append(_facts(message, turn, typing, config, loss_weights))
    conversation.tools_type = _tools_type(turns, typings)
    return conversation


def _refuse_misspelt(message: Any, number: int) -> None:
    """Refuse keys that look like those of types: nobody would read them, and the message would have another type."""
    for key in message if isinstance(message, dict) else ():
        meant = misspelt(key, _TYPE_KEYS)
        if meant:
            raise ValueError(f"turn {number}: unknown key {key!r}. Did you mean {meant!r}?")


def _fit(message: Any, number: int) -> Any:
    """Return a message with one of the format's roles, its thought in its text, as rules see it."""
    if not isinstance(message, dict) or "role" not in message:
        return message  # named by `read_sample`
    role = message["role"]
    name = role if role in FORMAT.roles else _role_name(message, role)
    if name is None:
        known = sorted({*FORMAT.roles, *_OTHER_NAMES, "developer"} - {"function"})
        hint = did_you_mean(role, known) if isinstance(role, str) else ""
        if role == "function":
            hint = " A reply that calls a tool is an assistant's with `tool_calls`; what a tool returned has the role tool."
        raise ValueError(f"turn {number}: role {role!r} is not allowed: one of {', '.join(known)}.{hint}")
    renamed = {**message, "role": name}
    if not must_compose(renamed, FORMAT):
        return renamed
    try:
        return fit_message(renamed, FORMAT, DEFAULT_WORDS)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"turn {number}: tool_calls: {type(error).__name__}: {error}.") from None


def _role_name(message: Mapping[str, Any], role: Any) -> str | None:
    if not isinstance(role, str):
        return None
    known = other_role(message, role) or (_OTHER_NAMES.get(role) if role != "function" else None)
    return None if known is None else _NAMES[known]


def _facts(
    message: dict[str, Any],
    turn: SampleMessage,
    typing: MessageTypes,
    config: HSAConfig,
    loss_weights: LossWeightsConfig,
) -> MessageFacts:
    default = int(SemanticType.GLOBAL) if turn.message.role == "system" else int(config.default)
    base = default if typing.semantic_type is None else int(typing.semantic_type)
    parts = None
    if typing.spans:
        parts = WrittenParts(message, TypedText(turn.message.text, base, typing.spans))
    return MessageFacts(turn.message.role, turn.where, base, weigh_turn(turn, loss_weights), parts)


def _tools_type(turns: Sequence[SampleMessage], typings: Sequence[MessageTypes]) -> int:
    """Return the type of the description of tools: a template puts it behind the system prompt."""
    if turns[0].message.role != "system":
        return int(SemanticType.GLOBAL)
    text, typing = turns[0].message.text, typings[0]
    base = int(SemanticType.GLOBAL) if typing.semantic_type is None else int(typing.semantic_type)
    return int(TypedText(text, base, typing.spans).spans[-1][2])
