"""A conversation that goes on: its tokens so far, with their types, and what the template writes before the next reply."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..config import HSAConfig
from ..loss_weights import LossWeightsConfig
from ..typed.turns import number_messages
from .chat_template import ChatTemplate
from .encoding import encode_typed, number_tokens
from .messages import Conversation, read_conversation


@dataclass(frozen=True)
class History:
    """The tokens of a conversation.

    Attributes:
        ids: Those of `apply_chat_template`; for each its type, its turn and the message that it belongs to.
        roles: Of the messages, as rules know them.
        next_turn: Of a reply that follows.
        header: What `add_generation_prompt=True` adds to `ids`.
        columns: What else a processor gives, such as the pixels of images.
    """

    ids: list[int]
    types: list[int]
    turns: list[int]
    owners: list[int]
    roles: list[str]
    next_turn: int
    header: list[int]
    columns: Mapping[str, Any] = field(default_factory=dict)


def encode_history(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], config: HSAConfig, own: Collection[int] = ()
) -> History:
    """Encode a conversation that is not over as `encode_conversation` encodes the whole.

    Args:
        template: The chat template of a tokenizer.
        messages: The conversation so far.
        config: Its rules, without turns that are counted from the end, which has not come.
        own: Numbers of the messages that the model has written: without a rule they have `config.generated`.

    Raises:
        ValueError: If a message cannot be read, the template refuses the conversation or cannot be followed, or what it
            writes before a reply does not stand at the end.
    """
    conversation = read_conversation(messages, config, LossWeightsConfig())
    if own and config.generated != config.default:
        written = read_conversation(messages, replace(config, default_type=config.generated), LossWeightsConfig())
        facts = [other if n in own else fact for n, (fact, other) in enumerate(zip(conversation.facts, written.facts))]
        conversation = Conversation(conversation.messages, facts, conversation.tools_type)
    encoded, tokens = encode_typed(template, conversation, {})
    header = _find_header(template, messages, encoded.input_ids)
    if header is None:
        raise ValueError(
            f"{template.name} writes the conversation otherwise with add_generation_prompt=True than without, so that nothing "
            "can follow it. Use a template that only adds the reply's header."
        )
    replies = [facts.is_reply for facts in conversation.facts]
    return History(
        encoded.input_ids,
        tokens.semantic_ids.tolist(),
        number_tokens(tokens, conversation),
        tokens.owners.tolist(),
        [facts.role for facts in conversation.facts],
        number_messages([*replies, True])[-1],
        header,
        encoded.columns,
    )


def _find_header(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], input_ids: list[int]
) -> list[int] | None:
    """Return the tokens that `add_generation_prompt=True` adds at the end; None: it changes others as well."""
    if template.is_processor:  # which would prepare all images once more
        whole, prompt = (
            template.official(messages, tokenize=False, add_generation_prompt=is_asked) for is_asked in (False, True)
        )
        read, prompt_ids = (
            template.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (whole, prompt)
        )
        return list(prompt_ids[len(read) :]) if prompt_ids[: len(read)] == read else None
    ids = template.official(messages, tokenize=True, return_dict=True, add_generation_prompt=True)["input_ids"]
    prompt, number = [int(token) for token in ids], len(input_ids)
    return prompt[number:] if prompt[:number] == input_ids else None
