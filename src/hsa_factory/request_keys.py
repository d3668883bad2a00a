"""Keys of HSA in what a client sends to a server: each stands where it is read, or the client is told where it belongs.

Both servers go by it, LLaMA-Factory's and vLLM's, so that a key means the same to both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .labeling.parts import SPANS_KEY, TYPE_KEY
from .suggestions import misspelt


TYPES = "hsa_types"
"""Field: the types of the prompt's tokens, one digit each: 0 GLOBAL, 1 LANDMARK, 2 NOISE; or ``default``. vLLM's server asks for
it; offline, without it, all tokens have the default type of the rules."""

TURNS = "hsa_turns"
"""Field: the turn numbers of the prompt's tokens, as a text of runs, ``"number*tokens"`` with commas between:
``"0*120,1*64"``. Needed where the rules have turns."""

ROLES = "hsa_roles"
"""Field: the roles of the messages before the reply, with commas between. Needed where a rule has a ``turn``."""

FIELDS = (TYPES, TURNS, ROLES)

OF_MESSAGES = (TYPE_KEY, SPANS_KEY, "semantic_tag", "semantic_ids")
"""Names that types have elsewhere: in chat messages, in training data, in a model's arguments."""

CHAT = "/v1/chat/completions"

Path = tuple[str | int, ...]
Place = tuple[()] | tuple["Place", str | int]  # where an object stands: in what, and under which key or number

_HOLDERS = (dict, Mapping, list)  # what has keys, or things with keys; most are found by the first

_SPELT = {name.replace("_", ""): name for name in (*FIELDS, *OF_MESSAGES)}
_LIKE = tuple(
    name.replace("_", "") for name in (*FIELDS, TYPE_KEY, SPANS_KEY)
)  # the others are like words of other people

# what stands below these is the user's own: descriptions of tools and of answers, arguments of calls
_OF_USERS = {"tools", "functions", "response_format", "structured_outputs", "arguments"}
_OF_USERS |= {"input_schema", "parameters", "schema"}


@dataclass(frozen=True)
class Reads:
    """What a route reads of HSA.

    Attributes:
        messages: Whether it reads the type of messages.
        parts: Whether it reads that of their parts, too.
        fields: Under which keys the fields of a prompt stand. Empty: it reads none.
    """

    messages: bool = False
    parts: bool = False
    fields: Path = ()


@lru_cache(maxsize=4096)
def meant_key(key: str) -> str | None:
    """Return which name of HSA is meant by a key, whatever its case and however its words are joined.

    Returns:
        One of `FIELDS` or `OF_MESSAGES`; the key itself, if it begins as ours do and is none of them; None: another word.
    """
    letters = "".join(filter(str.isalnum, key.lower()))
    close = letters if letters in _SPELT else misspelt(letters, _LIKE)
    if close is not None:
        return _SPELT[close]
    return key if key.lower().startswith("hsa_") else None


def unread_key(route: str, reads: Reads, body: Any) -> str | None:
    """Find a key of HSA that a route does not read, or that is misspelt.

    Args:
        route: Its path.
        reads: What it reads.
        body: Of the request, as JSON.

    Returns:
        A sentence that names the key and says where it belongs; None: there is none.
    """
    for place, key, value in _keys(body):
        meant = meant_key(key)
        if meant is None or (value is None and key == meant):
            continue
        where = _path(place)
        if not _is_read(reads, where, key):
            return f"{_name((*where, key))}{_what_to_do(route, reads, where, key, meant)}"
    return None


def without_hsa(body: Any) -> str | None:
    """Find a key of HSA in what is sent to a model without it; a key that is only like ours may be another one's.

    Returns:
        A sentence that names the key; None: there is none that says something.
    """
    named = {TYPE_KEY, SPANS_KEY, *FIELDS}
    for place, key, value in _keys(body):
        if key in named and value is not None:
            return f"{_name((*_path(place), key))}: this server's model has no HSA. Send requests without it."
    return None


def _keys(body: Any) -> Iterator[tuple[Place, str, Any]]:
    """Yield the keys of all objects with where they stand and what they hold; without recursion, however deep it is."""
    waiting: list[tuple[Place, Any]] = [((), body)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield place, key, inner
                if (
                    isinstance(inner, _HOLDERS)
                    and key not in _OF_USERS
                    and not (key == "input" and isinstance(inner, Mapping))
                ):
                    waiting.append(((place, key), inner))
        elif isinstance(value, list):
            inside = ((number, inner) for number, inner in enumerate(value) if isinstance(inner, _HOLDERS))
            waiting += [((place, number), inner) for number, inner in inside]


def _path(place: Place) -> Path:
    """Return a place as a path; a long body has many places, and few of them are named."""
    path: Path = ()
    while place:
        place, item = place
        path = (item, *path)
    return path


def _is_read(reads: Reads, where: Path, key: str) -> bool:
    if reads.fields and where == reads.fields:
        return key in FIELDS
    return key == TYPE_KEY and _is_typed(reads, where)


def _is_typed(reads: Reads, where: Path) -> bool:
    """Whether there stands what may have a type: a message, or a part of its content."""
    kinds = tuple(item if isinstance(item, str) else int for item in where)
    of_parts = reads.parts and kinds == ("messages", int, "content", int)
    return of_parts or (reads.messages and kinds == ("messages", int))


def _what_to_do(route: str, reads: Reads, where: Path, key: str, meant: str) -> str:
    is_of_messages = meant in OF_MESSAGES
    if where == reads.fields and where and not is_of_messages:
        hint = f" Did you mean {meant!r}?" if meant in FIELDS else ""
        return f": {_name((key,))} is no field of HSA. Allowed: {', '.join(FIELDS)}.{hint}"
    if _is_typed(reads, where) and meant == TYPE_KEY:
        return f": there is no such key. Did you mean {TYPE_KEY!r}?"
    if reads.messages and (is_of_messages or not reads.fields):
        return (
            f" is not read here. Give each message{', or each part of its content,' * reads.parts} its {TYPE_KEY!r}."
        )
    if reads.fields and not is_of_messages:
        inner = ": {".join(f'"{name}"' for name in (*reads.fields, meant if meant in FIELDS else FIELDS[0]))
        return f" is not read here. Send it within {inner}: …{'}' * len(reads.fields)}."
    return f" is not read by {route}: here rules and roles type a prompt, or its fields do. Send messages with a {TYPE_KEY!r} to {CHAT}."


def _name(path: Path) -> str:
    """Write a path as clients know it, such as ``messages[2].content``."""
    name = "".join(f"[{item}]" if isinstance(item, int) else f".{ascii(item)[1:-1][:40]}" for item in path)
    return name.removeprefix(".")
