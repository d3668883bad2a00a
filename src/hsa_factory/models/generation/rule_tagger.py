"""Types of generated tokens by the rules that label training data, decided as the text comes."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch

from ...config import HSAConfig
from ...labeling.matching import Message, label_messages
from ...labeling.rule import read_roles
from ...labeling.rule_set import Rule, RuleSet
from ...labeling.tags import find_elements
from ...typed.text import TypedText, token_types
from ..cache.tagger import ConstantTagger, Settled


ROLE = "assistant"
_COUNTED_ROLES = ("user", "assistant", "function", "observation")
_UNFINISHED = "\ufffd"  # what half a character decodes to


def make_tagger(
    config: HSAConfig, tokenizer: Any = None, roles: Sequence[str] | None = None
) -> "ConstantTagger | RuleTagger":
    """Return what types the tokens of a message that the model is about to write.

    Args:
        config: `rules` hold them; where none applies, tokens have `generated_type`, else `default_type`.
        tokenizer: Needed if a rule looks at the text.
        roles: Roles of the messages before, system message included; needed if a rule has a `turn`.

    Raises:
        ValueError: If a rule needs what is not given, or a role is unknown.
    """
    rules = [] if config.rules is None else _applicable(RuleSet.parse(config.rules), roles)
    if not rules:
        return ConstantTagger(config.generated)
    if rules[0].decided == "start" and not rules[0].types_parts:
        return ConstantTagger(rules[0].type)
    if tokenizer is None:
        raise ValueError(
            f"HSAConfig.rules: rule {rules[0].name!r} looks at the text of generated messages, which takes the "
            "tokenizer: generate(…, tokenizer=tokenizer)."
        )
    return RuleTagger(rules, config.generated, tokenizer)


def _applicable(rules: RuleSet, roles: Sequence[str] | None) -> list[Rule]:
    """Return the rules that may type a message of the assistant's, without conditions that are known to hold."""
    kept = []
    for rule in rules:
        if (rule.role and ROLE not in rule.role) or (rule.tool and not rule.tag):
            continue
        if rule.turn:
            if roles is None:
                raise ValueError(
                    f"HSAConfig.rules: rule {rule.name!r} counts turns, which takes the roles of the messages before: "
                    "generate(…, tagger=make_tagger(config, tokenizer, roles))."
                )
            turn = sum(role in (rule.role or _COUNTED_ROLES) for role in read_roles(roles))
            if turn not in rule.turn:  # those counted from the end are not known before the conversation's end
                continue
        kept.append(replace(rule, role=(), turn=()))
        if not rule.types_parts and not rule.contains:
            break  # it leaves nothing to the rules after it
    return kept


_LISTS = ("ids", "offsets", "types", "reported")  # of a text, a number for each token


@dataclass
class _Text:
    """The message that a row is writing: its text, and the place and type of each token in it."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    offsets: list[tuple[int, int]] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    reported: list[int] = field(default_factory=list)
    decoded: int = 0  # tokens whose text is known
    context: int = 0  # the token from which on they are decoded together
    next_type: int = 0
    message_type: int = 0  # of what the template writes around it
    ended: bool = False

    def copy(self) -> "_Text":
        twin = copy.copy(self)
        twin.ids, twin.offsets, twin.types = self.ids.copy(), self.offsets.copy(), self.types.copy()
        twin.reported = self.reported.copy()
        return twin


class RuleTagger:
    """Types the tokens of a message by rules, those of tags as soon as the tag is complete.

    A token has the type that the text so far gives it. What a rule can say only later (`Rule.decided`: at a closing
    tag, or at the message's end) is taken over then; until then the tokens in question count as unsettled.

    Args:
        rules: Those that may apply to the message, in order.
        base: Type where no rule says anything.
        tokenizer: Decodes the tokens.
    """

    def __init__(self, rules: Sequence[Rule], base: int, tokenizer: Any) -> None:
        self.all_rules = RuleSet(tuple(rules))
        early = tuple(rule for rule in rules if rule.decided != "end")
        self.early_rules = RuleSet(early) if early else None
        self.waits_for_end = len(early) < len(rules)
        self.tags = sorted({tag for rule in rules for tag in rule.tag})
        self.closing_tags = sorted({tag for rule in early if rule.decided == "close" for tag in rule.tag})
        self.base, self.tokenizer = int(base), tokenizer
        self.end_ids = {tokenizer.eos_token_id, tokenizer.pad_token_id}
        self.rows: list[_Text] = []

    def tag(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Take in the next tokens, (B, Q), and return their types for now, (B, Q)."""
        if not self.rows:
            self.rows = [self._begin() for _ in range(token_ids.shape[0])]
        for row, ids in zip(self.rows, token_ids.tolist(), strict=True):
            for token_id in ids:
                self._add(row, token_id)
        number = token_ids.shape[1]
        for row in self.rows:
            row.reported += row.types[-number:]
        return torch.tensor([row.types[-number:] for row in self.rows])

    def settled(self) -> list[Settled]:
        """Return the tokens whose type has changed since the last call."""
        changes = []
        for index, row in enumerate(self.rows):
            if row.types == row.reported:
                continue
            place = 0
            for (old, new), run in groupby(zip(row.reported, row.types)):
                length = len(list(run))
                if old != new:
                    changes.append(Settled(index, place, place + length, new))
                place += length
            row.reported = row.types.copy()
        return changes

    def unsettled(self) -> list[int] | None:
        """Return, for each row, the first token whose type may change yet, or the number of tokens if there is none."""
        return [self._first_unsettled(row) for row in self.rows] or None

    def message_types(self, rows: int) -> list[int]:
        """Return, for each of so many rows, the type for now of what a chat template writes around the message."""
        return [row.message_type for row in self.rows or [self._begin()] * rows]

    def change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Reorder, repeat or select rows, by a function on a tensor (B, …)."""
        self.rows = [self.rows[index].copy() for index in change(torch.arange(len(self.rows))).tolist()]

    def snapshot(self) -> list[tuple[_Text, dict[str, Any], dict[str, int]]]:
        """Return what `restore` goes back to: lists are added to or replaced, so that their lengths are enough."""
        return [(row, dict(vars(row)), {name: len(getattr(row, name)) for name in _LISTS}) for row in self.rows]

    def restore(self, snapshot: list[tuple[_Text, dict[str, Any], dict[str, int]]]) -> None:
        """Forget what has come since a snapshot."""
        for row, values, lengths in snapshot:
            vars(row).update(values)
            for name, length in lengths.items():
                del getattr(row, name)[length:]
        self.rows = [row for row, _, _ in snapshot]

    def _begin(self) -> _Text:
        row = _Text(next_type=self.base)
        self._type(row)
        return row

    def _add(self, row: _Text, token_id: int) -> None:
        row.ids.append(token_id)
        start = len(row.text)
        if row.ended or token_id in self.end_ids:
            row.offsets.append((start, start))
            row.types.append(row.types[-1] if row.ended and row.types else self.base)
            if not row.ended:
                row.ended = True
                self._type(row)
            return

        before = self._decode(row.ids[row.context : row.decoded])
        text = self._decode(row.ids[row.context :])
        piece = ""
        if not text.endswith(_UNFINISHED) or len(row.ids) - row.decoded > 4:
            piece = text[len(before) :]
            row.context, row.decoded = row.decoded, len(row.ids)
        row.text += piece
        row.offsets.append((start, len(row.text)))
        row.types.append(row.next_type)
        if "<" in piece or ">" in piece:
            self._type(row)

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _type(self, row: _Text) -> None:
        """Type all of a row's tokens anew, by what is known of the text."""
        rules = self.all_rules if row.ended else self.early_rules
        text = row.text if row.ended else row.text + "\0"  # stands for the text to come
        typing = label_messages([Message(ROLE, text)], rules)[0]
        base = self.base if typing.semantic_type is None else typing.semantic_type
        types = bytearray([base]) * len(text)
        for start, end, semantic_type in typing.spans:
            types[start:end] = bytes([semantic_type]) * (end - start)
        row.next_type, row.message_type = types[-1] if types else base, int(base)
        row.types = (
            list(token_types(TypedText(text, base, typing.spans), row.offsets, len(row.ids))) if row.ids else []
        )

    def _first_unsettled(self, row: _Text) -> int:
        number = len(row.ids)
        if row.ended:
            return number
        if self.waits_for_end:
            return 0
        place = len(row.text)
        for start, end, _, inner_end in find_elements(row.text, self.closing_tags):
            if inner_end == end:  # not closed yet
                place = min(place, start)
        opening = row.text.rfind("<")
        if opening >= 0 and self._may_be_tag(row.text[opening:]):
            place = min(place, opening)
        if place == len(row.text):
            return row.decoded
        first = row.decoded
        while first and row.offsets[first - 1][1] > place:
            first -= 1
        return first

    def _may_be_tag(self, text: str) -> bool:
        if ">" in text:
            return False
        name = text[1:].removeprefix("/")
        return any(tag.startswith(name) or (name.startswith(tag) and name[len(tag)].isspace()) for tag in self.tags)
