"""What a row is given to read: text or ids, and the type of each token."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ...config import HSAConfig
from ...labeling.matching import Message, label_messages
from ...labeling.rule_set import RuleSet
from ...semantics import SemanticType
from ...typed.text import TypedText, token_types


Types = Any  # a type by name or number, one for each token, or None


class ObservationReader:
    """Turns observations into tokens with types.

    Args:
        tokenizer: Of the model.
        config: The default type.
        rules: Those that hold before a conversation has ended; None: there are none.
    """

    def __init__(self, tokenizer: Any, config: HSAConfig, rules: RuleSet | None) -> None:
        self._tokenizer, self._default, self._rules = tokenizer, int(config.default), rules

    def read(
        self, observations: Mapping[int, tuple[Any, Types]], role: str, roles: Mapping[int, Sequence[str]]
    ) -> dict[int, tuple[list[int], list[int]]]:
        """Return the ids and types of some rows.

        Args:
            observations: For each row a text or ids, and their types.
            role: Of the message that it is, for rules.
            roles: Those of each row's messages before.

        Raises:
            ValueError: If something cannot be read; names the row.
        """
        texts = {
            row: self._type_text(row, text, types, role, roles[row])
            for row, (text, types) in observations.items()
            if isinstance(text, str)
        }
        encoded = self._encode(texts)
        return {
            row: encoded[row] if row in encoded else self._read_ids(row, ids, types)
            for row, (ids, types) in observations.items()
        }

    def _type_text(self, row: int, text: str, types: Types, role: str, roles: Sequence[str]) -> tuple[str, Types]:
        """Return a text that carries its types, or the text with types by token."""
        if not text:
            raise ValueError(f"row {row}: the observation is an empty text. Pass None where a row gets nothing.")
        if isinstance(text, TypedText) and types is None:
            return text, None
        if types is not None and not _is_one(types):
            return text, types
        if types is not None or self._rules is None:
            return TypedText(text, self._default if types is None else parse(row, types)), None
        before = roles if any(rule.turn or rule.tool for rule in self._rules) else ()
        messages = [*(Message(earlier, "") for earlier in before), Message(role, text)]
        typing = label_messages(messages, self._rules)[-1]
        base = self._default if typing.semantic_type is None else typing.semantic_type
        return TypedText(text, base, typing.spans), None

    def _encode(self, texts: Mapping[int, tuple[str, Types]]) -> dict[int, tuple[list[int], list[int]]]:
        if not texts:
            return {}
        needs_places = self._tokenizer.is_fast and any(
            isinstance(text, TypedText) and not text.is_uniform for text, _ in texts.values()
        )
        more = {"return_offsets_mapping": True} if needs_places else {}
        plain = [str(text) for text, _ in texts.values()]
        encoding = self._tokenizer(plain, add_special_tokens=False, return_attention_mask=False, **more)
        places = encoding["offset_mapping"] if needs_places else [None] * len(plain)
        found = {}
        for (row, (text, types)), ids, offsets in zip(texts.items(), encoding["input_ids"], places):
            if not ids:
                raise ValueError(f"row {row}: the observation {str(text)!r:.40} has no token.")
            if isinstance(text, TypedText):
                found[row] = ids, list(token_types(text, offsets, len(ids)))
            else:
                found[row] = ids, _per_token(row, types, len(ids))
        return found

    def _read_ids(self, row: int, given: Any, types: Types) -> tuple[list[int], list[int]]:
        ids = given.tolist() if hasattr(given, "tolist") else given
        if (
            not isinstance(ids, (list, tuple))
            or not ids
            or not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids)
        ):
            raise ValueError(
                f"row {row}: an observation is a text, or token ids (a list or a tensor of one dimension, one at least), got {given!r:.80}."
            )
        if types is None and self._rules is not None:
            raise ValueError(
                f"row {row}: rules type texts, but the observation is given as ids: give its text, or its types."
            )
        kinds = self._default if types is None else types
        return list(ids), [parse(row, kinds)] * len(ids) if _is_one(kinds) else _per_token(row, kinds, len(ids))


def spread(name: str, values: Any, rows: Sequence[int], number: int) -> dict[int, Any]:
    """Return what each row is given; None is left out.

    Args:
        name: Of what is given, for messages.
        values: One value for each of all rows, or a mapping from row to value.
        rows: Those that may be given something.
        number: How many rows there are.

    Raises:
        ValueError: If it does not fit; names the row.
    """
    if isinstance(values, Mapping):
        given = dict(values)
    elif isinstance(values, (list, tuple)) and len(values) == number:
        given = dict(enumerate(values))
    else:
        found = f"{len(values)} values" if isinstance(values, (list, tuple)) else f"{values!r:.60}"
        raise ValueError(
            f"{name}: expected one value for each of the {number} rows (None: nothing), or a mapping from row to value, got {found}."
        )
    given = {row: value for row, value in given.items() if value is not None}
    for row in given:
        if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < number:
            raise ValueError(f"{name}: there is no row {row!r}; rows have the numbers 0 to {number - 1}.")
        if row not in rows:
            raise ValueError(f"{name}: row {row} is finished. start({row}) begins a new episode in it.")
    return given


def spread_types(types: Types, rows: Sequence[int], number: int) -> dict[int, Types]:
    """Return the types of each of some rows: one for all, or a value for each, which may be None."""
    if types is None or _is_one(types):
        return dict.fromkeys(rows, types)
    values = types if isinstance(types, Mapping) else None
    for row in values or ():
        if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < number:
            raise ValueError(f"types: there is no row {row!r}; rows have the numbers 0 to {number - 1}.")
    if values is None and isinstance(types, (list, tuple)) and len(types) == number:
        values = dict(enumerate(types))
    if values is None:
        raise ValueError(
            f"types: expected one type, or one value for each of the {number} rows (None: by rules), or a mapping from row to value, got {types!r:.60}."
        )
    return {row: values.get(row) for row in rows}


def without_ends(rules: RuleSet) -> RuleSet | None:
    """Return the rules without turns that are counted from a conversation's end, which has not come."""
    kept = []
    for rule in rules:
        turns = tuple(turn for turn in rule.turn if turn >= 0)
        if turns or not rule.turn:
            kept.append(replace(rule, turn=turns))
    return RuleSet(tuple(kept)) if kept else None


def _is_one(types: Types) -> bool:
    return isinstance(types, (str, int)) and not isinstance(types, bool)


def parse(row: int, value: Any) -> int:
    """Read a type that a row is given."""
    try:
        return int(SemanticType.parse(value))
    except ValueError as error:
        raise ValueError(f"row {row}: {error}") from None


def _per_token(row: int, types: Types, number: int) -> list[int]:
    values = types.tolist() if isinstance(types, torch.Tensor) or hasattr(types, "tolist") else types
    if not isinstance(values, (list, tuple)) or len(values) != number:
        found = f"{len(values)} types" if isinstance(values, (list, tuple)) else f"{types!r:.60}"
        raise ValueError(f"row {row}: the observation has {number} tokens, but got {found}.")
    return [parse(row, value) for value in values]
