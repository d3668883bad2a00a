"""What rules say about a conversation: the type of each message, and of the parts of its text."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from typing import NamedTuple

from ..typed.spans import Span, find_runs
from .rule import SPAN_GROUP, Rule, compile_pattern
from .rule_set import RuleSet
from .tags import find_elements


PATTERN_TIMEOUT = 1.0  # seconds that one pattern may take on one message
_UNTYPED = 255
_BEFORE_VERB = " \t\r\n\"'`*([{-:“‘「"


class PatternTimeout(ValueError):
    """A rule's pattern took too long on a message.

    Attributes:
        index: The message's place in the conversation.
    """

    index: int = 0


@dataclass
class Message:
    """A message as rules see it, whatever format it came in.

    Attributes:
        role: `system`, `user`, `assistant`, `function` (a tool call) or `observation` (its reply).
        text: What the model gets to read.
        semantic_type: Its own type, given in the data; None: it has none.
        spans: Types of parts of the text, given in the data.
        tools: Names of the tools that it calls; None: they stand in its text.
    """

    role: str
    text: str
    semantic_type: int | None = None
    spans: Sequence[Span] = ()
    tools: tuple[str, ...] | None = None

    def tool_names(self) -> tuple[str, ...]:
        """Return the names of the tools that it calls; none unless its role is `function`."""
        if self.role != "function":
            return ()
        if self.tools is None:
            self.tools = _called_tools(self.text)
        return self.tools


class MessageTypes(NamedTuple):
    """Types of one message.

    Attributes:
        semantic_type: Type of the message: of what the chat template puts around its text, and of the text that no span
            covers. None: nothing says, and the default type holds.
        spans: Types of parts of the text, in order, without overlap; none if all of the text has the message's type.
    """

    semantic_type: int | None
    spans: tuple[Span, ...] = ()


UNTYPED = MessageTypes(None)


def label_messages(
    messages: Sequence[Message], rules: RuleSet | None, matches: Counter | None = None
) -> list[MessageTypes]:
    """Type the messages of one conversation.

    For each character, what comes first decides: a span given in the data, the message's type given in the data, the
    first rule that matches. A message whose whole text got one type has that type.

    Args:
        messages: In order, the system message (if any) included.
        rules: None: only what is given in the data counts.
        matches: Counts, by rule's name, of the messages and parts of messages that a rule decided; added to.

    Returns:
        One typing for each message.

    Raises:
        PatternTimeout: If a pattern takes longer than `PATTERN_TIMEOUT` on a message.
    """
    turns = _turns_of_rules(messages, rules) if rules is not None else {}
    answered: tuple[str, ...] = ()
    typings = []
    for index, message in enumerate(messages):
        if message.role == "function":
            answered = message.tool_names()
        applicable = []
        if rules is not None and message.semantic_type is None:
            for rule in rules.of_role(message.role):
                if _holds(rule, message, index, turns, answered):
                    applicable.append(rule)
                    if not rule.types_parts:
                        break  # it leaves nothing to the rules after it
        try:
            typings.append(_type_message(message, applicable, matches))
        except PatternTimeout as timeout:
            timeout.index = index
            raise
    return typings


def _turns_of_rules(messages: Sequence[Message], rules: RuleSet) -> dict[str, set[int]]:
    """Return the indices of the messages that each rule's `turn` means, by rule's name."""
    turns = {}
    for rule in rules:
        if rule.turn:
            roles = rule.role or ("user", "assistant", "function", "observation")
            indices = [index for index, message in enumerate(messages) if message.role in roles]
            turns[rule.name] = {indices[turn] for turn in rule.turn if -len(indices) <= turn < len(indices)}
    return turns


def _holds(rule: Rule, message: Message, index: int, turns: dict[str, set[int]], answered: tuple[str, ...]) -> bool:
    """Whether a rule's conditions on a message of its role hold."""
    if rule.turn and index not in turns[rule.name]:
        return False
    if rule.contains and not any(text in message.text for text in rule.contains):
        return False
    if rule.tool and not rule.tag:
        names = answered if message.role == "observation" else message.tool_names()
        return _is_tool(rule, names)
    return True


def _type_message(message: Message, rules: Sequence[Rule], matches: Counter | None) -> MessageTypes:
    if not message.spans:
        if message.semantic_type is not None:
            return MessageTypes(message.semantic_type)
        if not rules:
            return UNTYPED
        if not rules[0].types_parts:  # by far the most frequent case
            if matches is not None:
                matches[rules[0].name] += 1
            return MessageTypes(int(rules[0].type))

    types = bytearray([_UNTYPED]) * len(message.text)
    for start, end, semantic_type in message.spans:
        _paint(types, start, end, semantic_type)
    base = message.semantic_type
    for rule in rules:
        painted = 0
        if rule.types_parts:
            for start, end in find_parts(rule, message.text):
                painted += _paint(types, start, end, int(rule.type))
        else:  # the last one: what is untyped yet has the message's type
            base = int(rule.type)
            painted += _UNTYPED in types or not types
        if matches is not None and painted:
            matches[rule.name] += painted
    return _summarize(types, base)


def _paint(types: bytearray, start: int, end: int, semantic_type: int) -> bool:
    """Type what is untyped yet between two positions; return whether anything was."""
    free = types.count(_UNTYPED, start, end)
    if free == 0:
        return False
    if free == end - start:
        types[start:end] = bytes([semantic_type]) * free
    else:
        types[start:end] = types[start:end].replace(bytes([_UNTYPED]), bytes([semantic_type]))
    return True


def _summarize(types: bytearray, base: int | None) -> MessageTypes:
    if not types:
        return MessageTypes(base)
    if types.count(types[0]) == len(types):
        return MessageTypes(base if types[0] == _UNTYPED else types[0])

    return MessageTypes(base, tuple(run for run in find_runs(types) if run[2] not in (_UNTYPED, base)))


def find_parts(rule: Rule, text: str) -> Iterator[tuple[int, int]]:
    """Yield the parts of a text that a rule describes, (start, end) in characters.

    Raises:
        PatternTimeout: If the rule's pattern takes longer than `PATTERN_TIMEOUT`.
    """
    if rule.tag:
        for start, end, inner_start, inner_end in _elements(text, rule.tag):
            if rule.verbs and not _begins_with(text, inner_start, inner_end, rule.verbs):
                continue
            if rule.tool and not _is_tool(rule, _called_tools(text[inner_start:inner_end])):
                continue
            yield start, end
    elif rule.pattern:
        pattern = compile_pattern(rule.pattern)
        group = SPAN_GROUP if SPAN_GROUP in pattern.groupindex else 0
        try:
            for match in pattern.finditer(text, timeout=PATTERN_TIMEOUT):
                start, end = match.span(group)
                if start < end and (not rule.verbs or _begins_with(text, start, end, rule.verbs)):
                    yield start, end
        except TimeoutError:
            raise PatternTimeout(
                f"rule {rule.name!r}: pattern {rule.pattern!r} took longer than {PATTERN_TIMEOUT:g} s on a message of "
                f"{len(text):,} characters. Rewrite it without nested repetition, such as (a+)+."
            ) from None
    else:
        for media in rule.media:
            placeholder = f"<{media}>"
            start = text.find(placeholder)
            while start >= 0:
                yield start, start + len(placeholder)
                start = text.find(placeholder, start + len(placeholder))


# The rules of a set often ask for the same elements of a text, one after the other.
_elements = lru_cache(maxsize=16)(find_elements)


def _begins_with(text: str, start: int, end: int, verbs: tuple[str, ...]) -> bool:
    """Whether a part of a text begins with one of some verbs, as whole words, after spaces and quotes."""
    while start < end and text[start] in _BEFORE_VERB:
        start += 1
    folded, longest = _fold(verbs)
    beginning = text[start : min(end, start + longest + 1)].casefold()
    if not beginning.startswith(folded):
        return False
    for verb in folded:
        after = beginning[len(verb) : len(verb) + 1]
        if beginning.startswith(verb) and not (after.isalnum() or after == "_"):
            return True
    return False


@cache
def _fold(verbs: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
    """Return verbs without their case, and the length of the longest."""
    return tuple(verb.casefold() for verb in verbs), max(map(len, verbs))


def _is_tool(rule: Rule, names: Sequence[str]) -> bool:
    return any(fnmatchcase(name, wanted) for name in names for wanted in rule.tool)


def _called_tools(text: str) -> tuple[str, ...]:
    """Return the names in the first tool call: a JSON object with `name`, or a list of them, after a thought if any."""
    start = 0
    while start < len(text):
        end = start + 1
        if text[start] in "[{":
            try:
                calls, end = _DECODER.raw_decode(text, start)
            except (ValueError, RecursionError):
                calls = None
            calls = calls if isinstance(calls, list) else [calls]
            names = [call["name"] for call in calls if isinstance(call, dict) and isinstance(call.get("name"), str)]
            if names:
                return tuple(names)
        start = end
    return ()


_DECODER = json.JSONDecoder()
