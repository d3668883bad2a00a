"""Token ids that carry their type, so that every slice, cut, reversal and packing step carries it along."""

from collections.abc import Iterable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, TypeGuard

import numpy as np

from ..semantics import SemanticType


_TRAINED = 4  # in a code; what is below it is the type
_CODE = attrgetter("code")
_WEIGHT = attrgetter("weight")
_TYPES = bytes(code % _TRAINED for code in range(256))
_LOSS_MASKS = bytes(code // _TRAINED % 2 for code in range(256))


class TypedTokenId(int):
    """A token id that knows what it is; equal to the plain id in every other respect.

    What it knows is kept on the class, so that an instance is as small as an int can be. Classes are made by
    `token_ids`, one per combination.

    Attributes:
        semantic_type: Its `SemanticType` as a plain number.
        untrained: Why feedback or a weight keeps it out of the loss, decided on its whole sample; empty: nothing does.
        trained: Whether nothing does.
        weight: How much it is trained, whatever its role; None: as its role is, and as usual.
        code: Its type and whether it may be trained, in one number below 256.
    """

    __slots__ = ()
    semantic_type: int = int(SemanticType.NOISE)
    untrained: str = ""
    trained: bool = True
    weight: float | None = None
    code: int = int(SemanticType.NOISE) + _TRAINED

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (int(self), self.semantic_type, self.untrained, self.weight))


class TaggedTokenId(TypedTokenId):
    """A typed id that carries one thing more, of its own: for the few ids of a sample that something must be told of.

    Attributes:
        tag: What it carries.
    """

    tag: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild_tagged, (int(self), self.semantic_type, self.untrained, self.weight, self.tag))


class _Instances(dict[int, TypedTokenId]):
    """The instances of one class by id, made when first asked for."""

    def __init__(self, token_class: type[TypedTokenId]) -> None:
        super().__init__()
        self.token_class = token_class

    def __missing__(self, token_id: int) -> TypedTokenId:
        token = self[token_id] = self.token_class(token_id)
        return token


@cache
def _instances(semantic_type: int, untrained: str, weight: float | None = None) -> _Instances:
    attributes = {
        "__slots__": (),
        "semantic_type": semantic_type,
        "untrained": untrained,
        "trained": not untrained,
        "weight": weight,
        "code": semantic_type + _TRAINED * (not untrained),
    }
    token_class: type[TypedTokenId] = type("TypedTokenId", (TypedTokenId,), attributes)
    return _Instances(token_class)


def _rebuild(token_id: int, semantic_type: int, untrained: str, weight: float | None) -> TypedTokenId:
    return _instances(semantic_type, untrained, weight)[token_id]


def _rebuild_tagged(token_id: int, semantic_type: int, untrained: str, weight: float | None, tag: Any) -> TypedTokenId:
    return tag_id(_rebuild(token_id, semantic_type, untrained, weight), tag)


def type_token_ids(token_ids: Sequence[int], semantic_type: int, untrained: str = "") -> list[TypedTokenId]:
    """Return the same ids, each carrying what is given."""
    return list(map(_instances(int(semantic_type), untrained).__getitem__, token_ids))


def mark_untrained(token_ids: Sequence[TypedTokenId], reason: str) -> list[TypedTokenId]:
    """Return the same ids, marked as not to be trained, and why; tags stay."""
    classes: set[type[TypedTokenId]] = set(map(type, token_ids))
    instances = {token_class: _instances(token_class.semantic_type, reason) for token_class in classes}
    if len(classes) == 1 and not issubclass(next(iter(classes)), TaggedTokenId):
        return list(map(instances.popitem()[1].__getitem__, token_ids))
    marked = []
    for token in token_ids:
        untrained = instances[type(token)][token]
        marked.append(tag_id(untrained, token.tag) if isinstance(token, TaggedTokenId) else untrained)
    return marked


def weigh(token_ids: Sequence[TypedTokenId], weight: float | None) -> list[TypedTokenId]:
    """Return the same ids without tags, with a weight above 0 each; None takes it away."""
    return [_instances(token.semantic_type, token.untrained, weight)[token] for token in token_ids]


def tag_id(token: TypedTokenId, tag: Any) -> TypedTokenId:
    """Return the same id with a tag, in the place of one that it may have."""
    tagged = _tagged_class(token.semantic_type, token.untrained, token.weight)(token)
    tagged.tag = tag
    return tagged


@cache
def _tagged_class(semantic_type: int, untrained: str, weight: float | None) -> type[TaggedTokenId]:
    untagged = _instances(semantic_type, untrained, weight).token_class
    return type("TaggedTokenId", (TaggedTokenId, untagged), {})


def tags_of(token_ids: Sequence[int]) -> list[Any]:
    """Return the tags of the ids that have one, in order."""
    return [token.tag for token in token_ids if isinstance(token, TaggedTokenId)]


def count_plain(token_ids: Iterable[int]) -> int:
    """Count the ids that carry nothing: what the framework has added itself, such as an EOS or an empty thinking block."""
    return list(map(type, token_ids)).count(int)


def _all_typed(token_ids: Sequence[int]) -> TypeGuard[Sequence[TypedTokenId]]:
    return int not in set(map(type, token_ids))


def fill_types(token_ids: Sequence[int], otherwise: int | None = None) -> list[TypedTokenId]:
    """Give ids that carry nothing what the id before them carries (but for its tag), or else the next; see `count_plain`.

    Args:
        token_ids: Of one message, or of several.
        otherwise: Type of all ids if none carries anything: that of the message, where it has no text of its own.

    Raises:
        ValueError: If no id carries anything and `otherwise` is None.
    """
    if _all_typed(token_ids):
        return list(token_ids)

    carrier = next((token for token in token_ids if isinstance(token, TypedTokenId)), None)
    if carrier is None:
        if otherwise is None:
            raise ValueError("None of these token ids carries a semantic type.")
        return type_token_ids(token_ids, otherwise)

    filled: list[TypedTokenId] = []
    for token in token_ids:
        if isinstance(token, TypedTokenId):
            carrier = token
            filled.append(token)
        else:
            filled.append(_instances(carrier.semantic_type, carrier.untrained, carrier.weight)[token])

    return filled


def semantic_ids_of(token_ids: Sequence[int]) -> np.ndarray:
    """Read the types off, (n,) int8; ids that carry nothing are padding, and padding is NOISE."""
    padding = int(SemanticType.NOISE)
    return np.array([getattr(token, "semantic_type", padding) for token in token_ids], dtype=np.int8)


def read_off(token_ids: Sequence[TypedTokenId]) -> tuple[bytes, bytes]:
    """Return the semantic type of each id, and whether it may be trained (1) or not (0), a byte each."""
    codes = bytes(map(_CODE, token_ids))
    return codes.translate(_TYPES), codes.translate(_LOSS_MASKS)


def weights_of(token_ids: Sequence[TypedTokenId]) -> list[float | None]:
    """Return the weight of each id; None: as usual. Needed only where something was weighed."""
    return list(map(_WEIGHT, token_ids))
