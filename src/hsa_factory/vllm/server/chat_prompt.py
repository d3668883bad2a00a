"""The types of a chat prompt's tokens: given ones, then rules, then roles, as `hsa-factory api` has them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...config import HSAConfig
from ...loss_weights import LossWeightsConfig
from ...models.cache.tagger import ConstantTagger
from ...models.generation.rule_tagger import RuleTagger, make_tagger
from ...request_keys import ROLES
from ...semantics import SemanticType
from ...training.chat_template import ChatTemplate
from ...training.encoding import encode_typed, number_tokens
from ...training.messages import Conversation, read_conversation
from ...typed.turns import number_messages
from ..types import InvalidTypes, fields_of


_FLAGS = ("add_generation_prompt", "continue_final_message", "tokenize", "tools", "chat_template")


class ChatTyper:
    """Types the prompts of one model.

    Args:
        tokenizer: The model's, for this object alone: fast tokenizers are not for several threads at once.
        config: The model's rules.
    """

    def __init__(self, tokenizer: Any, config: HSAConfig) -> None:
        self.tokenizer, self.config = tokenizer, config

    def fields(
        self,
        conversation: Sequence[Mapping[str, Any]],
        prompt_ids: Sequence[int],
        *,
        tools: Sequence[Any] | None = None,
        chat_template: str | None = None,
        options: Mapping[str, Any] | None = None,
        is_cut: bool = False,
    ) -> dict[str, str]:
        """Return the fields by which the types of a prompt reach the engine.

        Args:
            conversation: The messages that the template wrote, with the client's types.
            prompt_ids: What it became.
            tools: Descriptions of tools, as the template got them.
            chat_template: The template; None: the tokenizer's.
            options: What else the template read, `add_generation_prompt` and `continue_final_message` among it.
            is_cut: Whether an end of the prompt may have been cut off.

        Raises:
            InvalidTypes: If the types cannot be told for certain; the message says why.
        """
        options = dict(options or {})
        continues = bool(options.get("continue_final_message"))
        rest = {name: value for name, value in options.items() if name not in _FLAGS and value is not None}
        if chat_template is not None:
            rest["chat_template"] = chat_template
        try:
            template = ChatTemplate(self.tokenizer, list(tools) if tools else None, rest)
            read = self._read(conversation)
            encoded, tokens = encode_typed(template, read, {})
        except ValueError as error:
            raise InvalidTypes(str(error)) from error
        roles = [facts.role for facts in read.facts]
        if continues:
            roles.pop()
            self._check_continued(roles)
        types, turns = tokens.semantic_ids.tolist(), number_tokens(tokens, read)
        ids = list(encoded.input_ids)
        if is_cut:  # by vLLM; the whole is needed to see where
            header = self._header(template, conversation, ids, bool(options.get("add_generation_prompt", True)))
        else:
            header = list(prompt_ids[len(ids) :])
        ids += header
        types += [read.facts[-1].semantic_type] * len(header)
        turns += [number_messages([*(facts.is_reply for facts in read.facts), True])[-1]] * len(header)
        kept = self._find(template, ids, list(prompt_ids), continues, is_cut)
        return fields_of(
            types[kept],
            turns[kept] if self.config.has_turns else None,
            roles if self.config.rules is not None else None,
        )

    def _read(self, conversation: Sequence[Mapping[str, Any]]) -> Conversation:
        """Read messages; one without a type from client or rules has that of its role."""
        config, weights = self.config, LossWeightsConfig()
        read = read_conversation(conversation, config, weights)
        if self._has_one_type:
            return read
        roles = [facts.role for facts in read.facts]
        by_role = {"assistant": config.generated, "function": config.generated}
        wanted = [by_role.get(role, config.default) for role in roles]
        if "user" in roles:
            wanted[roles.index("user")] = SemanticType.GLOBAL
        readings = {config.default: read.facts}
        for kind in {*wanted} - {config.default}:
            readings[kind] = read_conversation(conversation, replace(config, default_type=int(kind)), weights).facts
        facts = [readings[kind][number] for number, kind in enumerate(wanted)]
        return Conversation(read.messages, facts, read.tools_type)

    @property
    def _has_one_type(self) -> bool:
        return self.config.default == self.config.generated == SemanticType.GLOBAL

    def tagger(self, roles: Sequence[str] | None) -> ConstantTagger | RuleTagger:
        """Return what will type the reply.

        Args:
            roles: Of the messages before it; None: not said.

        Raises:
            InvalidTypes: If a rule needs the roles, and they are not said.
        """
        try:
            return make_tagger(self.config, self.tokenizer, roles)
        except ValueError as error:
            raise InvalidTypes(f"{error} Over HTTP they are the field {ROLES} of vllm_xargs.") from error

    def _check_continued(self, roles: Sequence[str]) -> None:
        """Refuse a reply that is begun by the client where rules read its text from the beginning."""
        if not isinstance(self.tagger(roles), ConstantTagger):
            raise InvalidTypes(
                "continue_final_message: the rules of this model type a reply by its text, from its beginning. Let the model "
                "begin its reply."
            )

    def _header(
        self, template: ChatTemplate, conversation: Sequence[Mapping[str, Any]], ids: list[int], is_asked_for: bool
    ) -> list[int]:
        if not is_asked_for:
            return []
        prompt = template.official(conversation, tokenize=True, return_dict=True, add_generation_prompt=True)
        return [int(token) for token in prompt["input_ids"]][len(ids) :]

    def _find(
        self, template: ChatTemplate, ids: list[int], prompt_ids: list[int], continues: bool, is_cut: bool
    ) -> slice:
        """Return which of a conversation's tokens the prompt is.

        Raises:
            InvalidTypes: If it is none of them.
        """
        length = len(prompt_ids)
        if ids[:length] == prompt_ids and (length == len(ids) or continues or is_cut):
            return slice(0, length)
        if is_cut and length and ids[-length:] == prompt_ids:
            return slice(len(ids) - length, len(ids))
        raise InvalidTypes(
            f"{template.name} writes this conversation as other tokens than the prompt has, so that nobody can tell their types: "
            "add_special_tokens, a template that writes otherwise before a reply, or messages that it changes. Send plain "
            "messages, or the prompt's tokens to /v1/completions with hsa_types."
        )
