"""Messages as tokens with types and turns: those that LLaMA-Factory trains on, without LLaMA-Factory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hsa_factory import HSAConfig
from hsa_factory.labeling.matching import Message as RoleText
from hsa_factory.labeling.matching import label_messages
from hsa_factory.labeling.rule_set import RuleSet
from hsa_factory.semantics import SemanticType
from hsa_factory.typed.text import TypedText, token_types

from .conversations import Message
from .vocabulary import ACT, END


@dataclass
class Encoded:
    """One conversation.

    Attributes:
        ids: Its tokens.
        types: Of each.
        turns: Of each.
        actions: Where each action begins and ends, the token that ends it included.
    """

    ids: list[int]
    types: list[int]
    turns: list[int]
    actions: list[tuple[int, int]]


def encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], config: HSAConfig) -> Encoded:
    """Encode a conversation. What a message says of its type itself comes before the rules."""
    rules = RuleSet.parse(config.rules) if config.rules is not None else None
    plain = [RoleText(message["role"], message["content"]) for message in messages]
    typings = label_messages(plain, rules) if rules is not None else [None] * len(plain)
    encoded, turn = Encoded([], [], [], []), 0
    for number, (message, typing) in enumerate(zip(messages, typings, strict=True)):
        is_action = message["role"] == "assistant"
        turn += number > 0 and messages[number - 1]["role"] == "assistant"
        text = message["content"] + ("" if message["role"] == "system" else END if is_action else ACT)
        typed = _typed(text, len(message["content"]), message.get("semantic_type"), typing, config)
        tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = tokens["input_ids"]
        if is_action:
            encoded.actions.append((len(encoded.ids), len(encoded.ids) + len(ids)))
        encoded.ids += ids
        encoded.types += token_types(typed, tokens["offset_mapping"], len(ids))
        encoded.turns += [turn] * len(ids)
    return encoded


def _typed(text: str, length: int, own: str | None, typing: Any, config: HSAConfig) -> TypedText:
    """Type a message's text and what the template puts behind it: as the whole message if that has one type."""
    if own is not None:
        return TypedText(text, SemanticType.parse(own))
    if typing is None:
        return TypedText(text, config.default)
    base = config.default if typing.semantic_type is None else typing.semantic_type
    spans = [(start, len(text) if stop == length and start == 0 else stop, kind) for start, stop, kind in typing.spans]
    return TypedText(text, base, spans)


def batch_of(rows: Sequence[Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    """Return a batch, padded on the right: ``input_ids``, ``attention_mask``, ``semantic_ids`` and ``turn_ids``, (B, L)."""
    longest = max(len(row.ids) for row in rows)

    def padded(values: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
        return torch.tensor([[*line, *[filler] * (longest - len(line))] for line in values])

    return {
        "input_ids": padded([row.ids for row in rows], pad_id),
        "attention_mask": padded([[1] * len(row.ids) for row in rows], 0),
        "semantic_ids": padded([row.types for row in rows], int(SemanticType.NOISE)),
        "turn_ids": padded([row.turns for row in rows], 0),
    }
