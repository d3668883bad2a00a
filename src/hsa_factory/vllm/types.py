"""How the types of a prompt's tokens reach vLLM: as fields of a request's sampling parameters, checked here.

They are the only thing of a request that arrives unchanged in all places that need it: the API server, the scheduler and
the workers. Offline they are ``SamplingParams(extra_args={"hsa_types": …})``, over HTTP ``"vllm_xargs": {"hsa_types": …}``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..attention.inputs import LARGEST_TURN
from ..config import HSAConfig
from ..labeling.rule import read_roles
from ..request_keys import FIELDS, ROLES, TURNS, TYPES, meant_key


DEFAULT = "default"
"""In the place of digits: all tokens of the prompt have the default type of the rules."""


class InvalidTypes(ValueError):
    """What a client sends of types, turns or roles cannot be used; the message says why, for that client."""


@dataclass(frozen=True, eq=False)
class PromptTypes:
    """What is known of a prompt's tokens.

    Attributes:
        types: (L,) uint8, the `SemanticType` of each token.
        turns: (L,) int64, the number of its turn. None: the rules have no turns.
        roles: Of the messages before the reply. None: not said.
    """

    types: NDArray[np.uint8]
    turns: NDArray[np.int64] | None = None
    roles: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.types)


def types_of(fields: Mapping[str, Any] | None, length: int, config: HSAConfig) -> PromptTypes:
    """Read what a request says of its prompt.

    Args:
        fields: The request's ``extra_args``; what is not of HSA is left alone. None: there are none.
        length: Number of the prompt's tokens.
        config: The rules of the model that is served.

    Raises:
        InvalidTypes: If something is missing or malformed, or does not fit the prompt.
    """
    fields = fields or {}
    check_fields(fields)
    types = fields.get(TYPES, DEFAULT)
    found = np.full(length, config.default, np.uint8) if types == DEFAULT else read_types(types)
    if len(found) != length:
        raise InvalidTypes(
            f"{TYPES} has {len(found)} digits, but the prompt has {length} tokens: one digit a token, and one for a picture."
        )
    if ROLES in fields and config.rules is None:
        raise InvalidTypes(f"{ROLES}: this model has no rules that could read roles. Leave it out.")
    return PromptTypes(found, _turns_of(fields, length, config), _roles_of(fields))


def fields_of(
    types: Sequence[int] | NDArray[Any],
    turns: Sequence[int] | NDArray[Any] | None = None,
    roles: Sequence[str] | None = None,
) -> dict[str, str]:
    """Write types, turns and roles as `types_of` reads them."""
    fields = {TYPES: "".join(map(str, np.asarray(types).tolist()))}
    if turns is not None:
        numbers = np.asarray(turns)
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
        runs = zip(numbers[starts].tolist(), np.diff(starts, append=len(numbers)).tolist())
        fields[TURNS] = ",".join(f"{number}*{tokens}" for number, tokens in runs)
    if roles is not None:
        fields[ROLES] = ",".join(roles)
    return fields


def check_fields(fields: Mapping[str, Any]) -> None:
    """Check what can be checked without the prompt and the rules.

    Raises:
        InvalidTypes: If a field of HSA is unknown or no text, or a type is none.
    """
    for name, value in fields.items():
        meant = meant_key(name)
        if meant is None:
            continue
        if name not in FIELDS:
            hint = f" Did you mean {meant!r}?" if meant in FIELDS else ""
            raise InvalidTypes(f"{ascii(name)[1:-1][:40]} is no field of HSA. Allowed: {', '.join(FIELDS)}.{hint}")
        if not isinstance(value, str):
            raise InvalidTypes(f"{name} must be a text, got {type(value).__name__}.")
    if fields.get(TYPES, DEFAULT) != DEFAULT:
        read_types(fields[TYPES])
    if TURNS in fields:
        _turn_runs(fields[TURNS])
    _roles_of(fields)


def read_types(text: str) -> NDArray[np.uint8]:
    """Return the types that digits name, (L,) uint8.

    Raises:
        InvalidTypes: If something else stands there.
    """
    found = np.frombuffer(text.encode("utf-8", "replace"), np.uint8) - np.uint8(ord("0"))
    wrong = np.flatnonzero(found > 2)
    if len(wrong):
        place = int(wrong[0])
        what = text[place : place + 1] or text[-1:]
        raise InvalidTypes(
            f"{TYPES} holds {what!r} at token {place}: allowed are the digits 0 (GLOBAL), 1 (LANDMARK) and 2 (NOISE)."
        )
    return found


def _turn_runs(text: str) -> tuple[list[int], list[int]]:
    """Return numbers and lengths of the runs in a text, unexpanded: a client may name any length.

    Raises:
        InvalidTypes: If it cannot be read, or numbers fall.
    """
    numbers: list[int] = []
    lengths: list[int] = []
    for run in text.split(",") if text else ():
        number, _, tokens = run.partition("*")
        try:
            numbers.append(int(number))
            lengths.append(int(tokens))
        except ValueError:
            raise InvalidTypes(
                f'{TURNS} holds {run[:40]!r}: it must be runs number*tokens, as in "0*120,1*64".'
            ) from None
        if abs(numbers[-1]) > LARGEST_TURN or not 0 <= lengths[-1] <= LARGEST_TURN:
            raise InvalidTypes(f"{TURNS} holds {run[:40]!r}: a number is too large, or a length below 0.")
        if len(numbers) > 1 and numbers[-1] < numbers[-2]:
            raise InvalidTypes(f"{TURNS} falls from {numbers[-2]} to {numbers[-1]}: turn numbers never fall.")
    return numbers, lengths


def _roles_of(fields: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the roles of a request's messages; none for an empty text, None where nothing is said.

    Raises:
        InvalidTypes: If one is unknown.
    """
    text = fields.get(ROLES)
    if not text:
        return None if text is None else ()
    try:
        return read_roles(text.split(","))
    except ValueError as error:
        raise InvalidTypes(f"{ROLES}: {error}") from None


def _turns_of(fields: Mapping[str, Any], length: int, config: HSAConfig) -> NDArray[np.int64] | None:
    if not config.has_turns:
        if TURNS in fields:
            raise InvalidTypes(f"{TURNS}: the rules of this model count no turns. Leave it out.")
        return None
    if TURNS not in fields:
        raise InvalidTypes(f"The rules of this model count turns, so {TURNS} is needed: runs number*tokens.")
    numbers, lengths = _turn_runs(fields[TURNS])
    if sum(lengths) != length:
        raise InvalidTypes(f"{TURNS} covers {sum(lengths)} tokens, but the prompt has {length}; a picture is one.")
    return np.repeat(np.array(numbers, np.int64), lengths)
