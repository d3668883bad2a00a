"""LLaMA-Factory's chat templates with typed token ids: same ids, each carrying the type of its message."""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from llamafactory.data.formatter import SLOTS, Formatter, FunctionFormatter
from llamafactory.data.template import Template
from llamafactory.extras.constants import AUDIO_PLACEHOLDER, IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER

from ...semantics import SemanticType
from ...typed.carry import align, carry_types, type_rendered_text
from ...typed.ids import TypedTokenId, count_plain, fill_types, type_token_ids
from ...typed.spans import find_runs
from ...typed.text import TypedText, token_types, without
from ...typed.tool_call import type_tool_call
from .text_encoder import TextEncoder


if TYPE_CHECKING:
    from llamafactory.data.template import Template as MixedInto
else:
    MixedInto = object


Pairs = list[tuple[list[TypedTokenId], list[TypedTokenId]]]
PLACEHOLDERS = (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, AUDIO_PLACEHOLDER)  # in the order of LLaMA-Factory's arguments
TYPE_KEY = "semantic_type"  # of a message, beside "role" and "content"
TEXT_KEY = "typed_content"  # the content with its spans, where a message has parts of several types
_CONTENT_SLOT = "{{content}}"
WEIGHT_KEY = "weight"  # 0: not trained; 1: as the message's role is
ALWAYS_KEY = "always"  # whether a weight of 1 holds whatever the role
TURN_KEY = "turn"  # its place among the messages of the data; -1: it has none
_FORMATTERS = ("format_user", "format_assistant", "format_system", "format_function", "format_observation")


class _TypedSet(set):
    """A slot such as {"eos_token"} with the type of the message it stands in."""

    semantic_type: int


class _TypedDict(dict):
    """A slot such as {"token": "<|user|>"} with the type of the message it stands in."""

    semantic_type: int


class _TypedFormatter:
    """A formatter that hands the type of its content on to every element it makes."""

    def __init__(self, formatter: Formatter, is_system: bool) -> None:
        self.formatter = formatter
        self.is_system = is_system

    def __getattr__(self, name: str) -> Any:
        if name == "formatter":  # not there yet while unpickling
            raise AttributeError(name)
        return getattr(self.formatter, name)

    def apply(self, **kwargs: Any) -> SLOTS:
        elements = self.formatter.apply(**kwargs)
        content = kwargs.get("content")
        if not isinstance(content, TypedText):
            return elements
        if content.is_uniform and not content.is_guessed and not self.is_system:  # nearly all: nothing to find in it
            return [_whole_element(element, content.semantic_type) for element in elements]

        lost_parts = 0
        if isinstance(self.formatter, FunctionFormatter) and not content.is_uniform:
            content, lost_parts = self._type_call(content, kwargs, elements)

        slots: Iterable[Any] = self.formatter.slots
        if len(self.formatter.slots) != len(elements):
            slots = repeat(_CONTENT_SLOT)
        typed = [_typed_element(element, content, slot, kwargs) for element, slot in zip(elements, slots)]
        if self.is_system:
            for element in typed:
                element.is_system = True
        if lost_parts:
            typed[0].lost_parts = lost_parts
        return typed

    def _type_call(self, content: TypedText, kwargs: dict[str, Any], elements: SLOTS) -> tuple[TypedText, int]:
        """Type a tool call as the formatter has written it; return how many of its parts were not found again, too."""
        holds_content = [isinstance(slot, str) and _CONTENT_SLOT in slot for slot in self.formatter.slots]
        number = holds_content.index(True)
        before, after = map(len, self.formatter.slots[number].split(_CONTENT_SLOT, 1))

        def call_in(elements: SLOTS) -> str:
            element = elements[number]
            return element[before : len(element) - after]

        def write(text: str) -> str:
            return call_in(self.formatter.apply(**{**kwargs, "content": text}))

        words = kwargs.get("tool_call_words"), kwargs.get("thought_words")
        return type_tool_call(content, call_in(elements), write, *words)


class TypedTemplateMixin(MixedInto):
    """Overrides what turns messages into ids; made by `typed_template`.

    Attributes:
        default_type: Type of a message without one.
        system_length: Ids of the system prompt at the start of the conversation encoded last, and of what stands
            before it; 0 where it is no text of its own.
        guessed: Messages of the conversation encoded last of which not all types are known for sure: the text was changed on
            the way, or the tokenizer does not say which characters a token stands for.
        lost_parts: Parts of its tool calls that have a type of their own and were not found again in what the template wrote.
        filled: Ids of it that LLaMA-Factory added itself (a BOS, an empty thinking block); each takes what the id before it
            in its message carries, or else the next, or else the type of the message, if that has no other token.
        on_pairs: Called with the (prompt ids, response ids) of a whole sample before LLaMA-Factory cuts it; returns
            the pairs to go on with.
        on_prompt: Called with the prompt ids of a conversation that the model is to continue.
        on_turn: Called with the prompt ids, all before the last message, and the response ids of a conversation that is encoded
            as one turn, before LLaMA-Factory cuts it; returns those to go on with.
        lengths: How many ids each message of the conversation encoded last has, without what is added to them.
    """

    default_type: SemanticType
    system_length: int
    guessed: int
    lost_parts: int
    filled: int
    on_pairs: Callable[[Pairs], Pairs] | None
    on_prompt: Callable[[list[TypedTokenId]], Any] | None
    on_turn: Callable[[list[Any], list[Any]], tuple[list[Any], list[Any]]] | None
    lengths: list[int]
    _types: list[int]  # of the messages of the conversation at work
    _encoded: int  # how many of them are encoded so far
    _plain: int  # how many ids made so far carry nothing

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a process that was not forked makes it: its class has no name there."""
        return _untyped, (type(self).__bases__[-1],), vars(self)

    def encode_oneturn(
        self, tokenizer: Any, messages: list[dict[str, Any]], *args: Any, **kwargs: Any
    ) -> tuple[list[TypedTokenId], list[int]]:
        prompt_ids, response_ids = super().encode_oneturn(tokenizer, _with_spans(messages), *args, **kwargs)
        start = max(
            sum(self.lengths[:-2]), self.system_length
        )  # of the last prompt, which an empty thinking block may end
        self.filled += count_plain(prompt_ids)
        prompt_ids[start:] = fill_types(prompt_ids[start:], [self.default_type, *self._types][-2])
        if self.on_prompt is not None:
            self.on_prompt(prompt_ids)
        if self.on_turn is None:
            return prompt_ids, response_ids
        self.filled += count_plain(response_ids)
        return self.on_turn(prompt_ids, fill_types(response_ids, self._types[-1]))

    def encode_multiturn(self, tokenizer: Any, messages: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Pairs:
        pairs = super().encode_multiturn(tokenizer, _with_spans(messages), *args, **kwargs)
        is_as_encoded = not self._plain and sum(map(len, chain.from_iterable(pairs))) == sum(self.lengths)
        added = 0 if is_as_encoded else count_plain(chain.from_iterable(chain.from_iterable(pairs)))
        self.filled += added
        if added:
            sides = [self._filled(ids, k) for k, ids in enumerate(chain.from_iterable(pairs))]
            pairs = list(zip(sides[::2], sides[1::2]))
        return self.on_pairs(pairs) if self.on_pairs is not None else pairs

    def _filled(self, ids: list[int], k: int) -> list[TypedTokenId]:
        """Type what LLaMA-Factory has added to message `k`; the system prompt, which begins the first, is typed already."""
        start = self.system_length if k == 0 else 0
        return [*fill_types(ids[:start]), *fill_types(ids[start:], self._types[k])]

    def remove_thought(self, content: str) -> str:
        kept = super().remove_thought(content)
        if not isinstance(content, TypedText):
            return kept

        thought = re.compile(f"{re.escape(self.thought_words[0])}.*?{re.escape(self.thought_words[1])}", re.DOTALL)
        typed = without(content, [match.span() for match in thought.finditer(content)])
        typed = typed.part(len(typed) - len(typed.lstrip("\n")), len(typed))
        return typed if typed == kept else align(content, kept)

    def _encode(self, tokenizer: Any, messages: list[dict[str, Any]], system: str | None, tools: str | None) -> list:
        typed_messages, self._types = [], []
        for message in messages:
            semantic_type = message.get(TYPE_KEY)
            semantic_type = self.default_type if semantic_type is None else semantic_type
            if isinstance(message["content"], str) and not isinstance(message["content"], TypedText):
                message = {**message, "content": TypedText(message["content"], semantic_type)}
            typed_messages.append(message)
            self._types.append(semantic_type)

        self.system_length = self.guessed = self.lost_parts = self._encoded = self._plain = 0
        try:
            encoded = super()._encode(TextEncoder(tokenizer), typed_messages, system, tools)  # which only hands it on
        except Exception as error:
            raise ValueError(self._explain(error, messages, tools)) from error
        self.filled = count_plain(chain.from_iterable(encoded[:1]))  # what stands before a conversation
        encoded[:1] = map(fill_types, encoded[:1], self._types)
        self.lengths = list(map(len, encoded))
        return encoded

    def _explain(self, error: Exception, messages: list[dict[str, Any]], tools: str | None) -> str:
        """Say which message LLaMA-Factory could not encode: the one after those that it has."""
        reason = describe(error)
        if self._encoded == 0 and tools and not self._can_render(tools):
            return f"the description of the tools: {reason}"
        message = messages[self._encoded]
        if message["role"] == "function" and isinstance(error, (KeyError, TypeError, AttributeError)):
            reason = (
                'a tool call must be JSON, {"name": …, "arguments": …} or a list of these, not '
                f"{message['content']!r:.80}."
            )
        return f"{place_of(message, self._encoded)}: {reason}"

    def _can_render(self, tools: str) -> bool:
        try:
            self.format_tools.apply(content=tools)
        except Exception:
            return False
        return True

    def _convert_elements_to_ids(self, encoder: TextEncoder, elements: SLOTS) -> list[int]:
        token_ids: list[int] = []
        for element in elements:
            token_ids += self._convert_element(encoder, element)
            self.lost_parts += getattr(element, "lost_parts", 0)
            if getattr(element, "is_system", False):
                self.system_length = len(token_ids)
        self._encoded += 1  # LLaMA-Factory asks once a message
        return token_ids

    def _convert_element(self, encoder: TextEncoder, element: Any) -> Sequence[int]:
        if isinstance(element, TypedText):
            if not element:
                return []
            self.guessed += element.is_guessed
            if element.is_uniform:
                return type_token_ids(encoder.encode(str(element)), element.semantic_type)
            ids, offsets = encoder.encode_with_offsets(str(element))
            self.guessed += offsets is None and not element.is_guessed
            typed: list[TypedTokenId] = []
            for start, end, semantic_type in find_runs(token_types(element, offsets, len(ids))):
                typed += type_token_ids(ids[start:end], semantic_type)
            return typed

        ids = super()._convert_elements_to_ids(encoder.tokenizer, [element])
        if None in ids:
            raise ValueError(
                f"the template writes {element['token']!r}, which the tokenizer does not have. Choose the template of this "
                "model, or add the token (add_special_tokens and resize_vocab)."
            )
        if isinstance(element, (_TypedSet, _TypedDict)):
            return type_token_ids(ids, element.semantic_type)
        self._plain += len(ids)
        return ids


def typed_template(template: Template, default_type: SemanticType) -> Template:
    """Return a copy of a template that makes typed ids; the template itself stays as it is.

    Args:
        template: Any registered or parsed template.
        default_type: Type of a message without one.
    """
    typed = _untyped(type(template))
    typed.__dict__.update(template.__dict__)
    for name in _FORMATTERS:
        setattr(typed, name, _TypedFormatter(getattr(template, name), name == "format_system"))

    typed.default_system = TypedText(template.default_system, SemanticType.GLOBAL)
    typed.default_type = default_type
    typed.system_length = typed.guessed = typed.lost_parts = typed.filled = typed._encoded = typed._plain = 0
    typed._types, typed.lengths = [], []
    typed.on_pairs = typed.on_prompt = typed.on_turn = None
    return typed


def _typed_class(template_class: type[Template]) -> type[Template]:
    name = f"Typed{template_class.__name__}"
    known = globals().get(name)
    if known is None or known.__bases__[-1] is not template_class:
        known = type(name, (TypedTemplateMixin, template_class), {"__module__": __name__})
        globals()[name] = known  # made once, so that all templates of a class are of one
    return known


def _untyped(template_class: type[Template]) -> Any:
    """Return a typed template without its attributes."""
    return object.__new__(_typed_class(template_class))


def describe(error: Exception) -> str:
    """Return what an error says; with its kind where that says most of it."""
    return str(error) if type(error) in (ValueError, RuntimeError) else f"{type(error).__name__}: {error}"


def place_of(message: dict[str, Any], number: int) -> str:
    """Return what an error calls a message.

    Args:
        message: A converted message.
        number: Its place in the conversation, for a message that does not know its place in the data.
    """
    turn = message.get(TURN_KEY, -1)
    return f"turn {number if turn < 0 else turn} ({message['role']})"


def _with_spans(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the messages' spans on their contents, whose media LLaMA-Factory has replaced by their tokens meanwhile."""
    return [
        {**message, "content": carry_types(message[TEXT_KEY], message["content"], PLACEHOLDERS)}
        if TEXT_KEY in message
        else message
        for message in messages
    ]


def _typed_element(element: Any, content: TypedText, slot: Any, values: dict[str, Any]) -> Any:
    """Type what a formatter made of a slot."""
    if isinstance(element, str):
        return type_rendered_text(element, content, *_content_place(element, slot, values))
    return _whole_element(element, content.semantic_type)


def _whole_element(element: Any, semantic_type: int) -> Any:
    """Type what a formatter made of a slot, all of it the same."""
    if isinstance(element, str):
        return TypedText(element, semantic_type)
    typed = _TypedSet(element) if isinstance(element, set) else _TypedDict(element)
    typed.semantic_type = semantic_type
    return typed


def _content_place(element: str, slot: Any, values: dict[str, Any]) -> tuple[int, int] | tuple[None, None]:
    """Return where the content begins and ends in what was made of a slot; None if the slot does not hold it."""
    if not isinstance(slot, str) or _CONTENT_SLOT not in slot:
        return None, None
    before, after = slot.split(_CONTENT_SLOT, 1)
    for name, value in values.items():
        if name != "content" and isinstance(value, str):
            placeholder = "{{" + name + "}}"
            if placeholder in before:  # only its first place is filled
                before = before.replace(placeholder, value, 1)
            else:
                after = after.replace(placeholder, value, 1)
    return len(before), len(element) - len(after)
