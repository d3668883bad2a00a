"""Token ids that carry their type, so that every slice, cut, reversal and packing step carries it along."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

import numpy as np

from ..semantics import SemanticType


class TypedTokenId(int):
    """A token id that knows what it is; equal to the plain id in every other respect.

    What it knows is kept on the class, so that an instance is as small as an int can be. Classes are made by
    `token_ids`, one per combination.

    Attributes:
        semantic_type: Its `SemanticType` as a plain number.
        untrained: Why feedback or a weight keeps it out of the loss, decided on its whole sample; empty: nothing does.
        trained: Whether nothing does.
        source: The name of its data set.
    """

    __slots__ = ()
    semantic_type: int = int(SemanticType.NOISE)
    untrained: str = ""
    trained: bool = True
    source: str = ""

    def __reduce__(self) -> tuple:
        return (_rebuild, (int(self), self.semantic_type, self.untrained, self.source))


class TaggedTokenId(TypedTokenId):
    """A typed id that carries one thing more, of its own: for the few ids of a sample that something must be told of.

    Attributes:
        tag: What it carries.
    """

    untagged: type[TypedTokenId]
    tag: Any


class _Instances(dict):
    """The instances of one class by id, made when first asked for."""

    def __init__(self, token_class: type[TypedTokenId]) -> None:
        super().__init__()
        self.token_class = token_class

    def __missing__(self, token_id: int) -> TypedTokenId:
        token = self[token_id] = self.token_class(token_id)
        return token


@cache
def _instances(semantic_type: int, untrained: str, source: str) -> _Instances:
    attributes = {
        "__slots__": (),
        "semantic_type": semantic_type,
        "untrained": untrained,
        "trained": not untrained,
        "source": source,
    }
    return _Instances(type("TypedTokenId", (TypedTokenId,), attributes))


def _rebuild(token_id: int, semantic_type: int, untrained: str, source: str) -> TypedTokenId:
    return _instances(semantic_type, untrained, source)[token_id]


def type_token_ids(
    token_ids: Sequence[int], semantic_type: int, untrained: str = "", source: str = ""
) -> list[TypedTokenId]:
    """Return the same ids, each carrying what is given."""
    return list(map(_instances(int(semantic_type), untrained, source).__getitem__, token_ids))


def mark_untrained(token_ids: Sequence[TypedTokenId], reason: str) -> list[TypedTokenId]:
    """Return the same ids, marked as not to be trained, and why."""
    classes = set(map(type, token_ids))
    instances = {cls: _instances(cls.semantic_type, reason, cls.source) for cls in classes}
    if len(classes) == 1:
        return list(map(instances.popitem()[1].__getitem__, token_ids))
    return [instances[type(token)][token] for token in token_ids]


def tag_id(token: TypedTokenId, tag: Any) -> TaggedTokenId:
    """Return the same id with a tag, in the place of one that it may have."""
    tagged = _tagged_class(getattr(type(token), "untagged", type(token)))(token)
    tagged.tag = tag
    return tagged


@cache
def _tagged_class(untagged: type[TypedTokenId]) -> type[TaggedTokenId]:
    return type("TaggedTokenId", (TaggedTokenId, untagged), {"untagged": untagged})


def tags_of(token_ids: Sequence[int]) -> list[tuple[int, Any]]:
    """Return (place, tag) of the ids that have one, in order."""
    is_tagged = {cls: issubclass(cls, TaggedTokenId) for cls in set(map(type, token_ids))}
    if not any(is_tagged.values()):
        return []
    flags = bytes(map(is_tagged.__getitem__, map(type, token_ids)))
    places, place = [], flags.find(1)
    while place >= 0:
        places.append((place, token_ids[place].tag))
        place = flags.find(1, place + 1)
    return places


def fill_types(token_ids: Sequence[int]) -> list[TypedTokenId]:
    """Give ids that carry nothing (added by the framework) what the id before them carries, or else the next.

    Raises:
        ValueError: If no id carries anything.
    """
    if int not in set(map(type, token_ids)):
        return list(token_ids)

    carrier = next((token for token in token_ids if type(token) is not int), None)
    if carrier is None:
        raise ValueError("None of these token ids carries a semantic type.")

    filled = []
    for token in token_ids:
        if type(token) is int:
            token = _instances(carrier.semantic_type, carrier.untrained, carrier.source)[token]
        carrier = token
        filled.append(token)

    return filled


def semantic_ids_of(token_ids: Sequence[int]) -> np.ndarray:
    """Read the types off, (n,) int8; ids that carry nothing are padding, and padding is NOISE."""
    return _read_off(token_ids, "semantic_type", int(SemanticType.NOISE))


def loss_mask_of(token_ids: Sequence[int]) -> np.ndarray:
    """Read off which tokens may be trained (1) or not (0), (n,) int8; padding is not."""
    return _read_off(token_ids, "trained", 0)


def _read_off(token_ids: Sequence[int], attribute: str, padding: int) -> np.ndarray:
    values = {cls: int(getattr(cls, attribute, padding)) for cls in set(map(type, token_ids))}
    return np.frombuffer(bytes(map(values.__getitem__, map(type, token_ids))), dtype=np.int8)


def sources_of(token_ids: Sequence[int]) -> list[str]:
    """Return the names of the data sets in a row, in order of appearance."""
    classes = dict.fromkeys(map(type, token_ids))
    return list(dict.fromkeys(cls.source for cls in classes if cls is not int))


def plain_ids(token_ids: Sequence[int]) -> np.ndarray:
    """Return the ids without what they carry, (n,) int64."""
    return np.fromiter(token_ids, dtype=np.int64, count=len(token_ids))


def count_types(token_ids: Sequence[TypedTokenId]) -> Counter:
    """Count the tokens of each semantic type, by name."""
    counts: Counter = Counter()
    for cls, number in Counter(map(type, token_ids)).items():
        counts[SemanticType(cls.semantic_type).name] += number
    return counts


def count_trained(labels: Sequence[int]) -> int:
    """Count the labels that carry something and may be trained."""
    return sum(number for cls, number in Counter(map(type, labels)).items() if cls is not int and cls.trained)


def flatten(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[int]:
    """Join prompt and response ids of all turns."""
    return list(chain.from_iterable(chain.from_iterable(pairs)))
