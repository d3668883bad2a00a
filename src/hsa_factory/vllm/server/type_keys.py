"""Keys of HSA in the body of a request: each stands where a route reads it, or the client is told where it belongs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...labeling.parts import SPANS_KEY, TYPE_KEY
from ..types import FIELDS, OF_MESSAGES, InvalidTypes, meant_key


Path = tuple[str | int, ...]

CHAT = "/v1/chat/completions"

# what stands below these is the user's own: descriptions of tools and of answers, arguments of calls
_OF_USERS = {"tools", "functions", "response_format", "structured_outputs", "arguments"}
_OF_USERS |= {"input_schema", "parameters", "schema"}


@dataclass(frozen=True)
class Reads:
    """What a route reads of HSA.

    Attributes:
        messages: Whether it reads the type of messages and of their parts.
        fields: Under which keys the fields of a prompt stand. Empty: it reads none.
    """

    messages: bool = False
    fields: Path = ()


_XARGS = ("vllm_xargs",)
_ROUTES = {
    CHAT: Reads(messages=True, fields=_XARGS),
    "/v1/completions": Reads(fields=_XARGS),
    "/v1/messages": Reads(fields=_XARGS),
    "/v1/responses": Reads(fields=_XARGS),
    "/invocations": Reads(fields=_XARGS),
    "/v1/chat/completions/batch": Reads(fields=_XARGS),
    "/v1/chat/completions/render": Reads(fields=_XARGS),
    "/v1/completions/render": Reads(fields=_XARGS),
    "/v1/messages/render": Reads(fields=_XARGS),
    "/inference/v1/generate": Reads(fields=("sampling_params", "extra_args")),
    "/tokenize": Reads(messages=True),  # a type changes no token
}


def reads_of(route: str) -> Reads:
    """Return what a route reads of HSA; one that is not known here reads nothing."""
    return _ROUTES.get(route, Reads())


def check_keys(route: str, body: Any) -> None:
    """Refuse keys of HSA that a route does not read, and those that are misspelt.

    Args:
        route: Its path.
        body: Of the request, as JSON.

    Raises:
        InvalidTypes: It names the key, and says where it belongs.
    """
    reads = reads_of(route)
    for where, key, value in _keys(body):
        meant = meant_key(key)
        if meant is None or _is_read(reads, where, key) or (value is None and key == meant):
            continue
        raise InvalidTypes(f"{_name((*where, key))}{_what_to_do(route, reads, where, key, meant)}")


def holds_keys(body: Any) -> str | None:
    """Return a key of HSA in a body that says something, as a path; None: there is none, or it is none of ours."""
    named = {TYPE_KEY, SPANS_KEY, *FIELDS}
    return next((_name((*w, key)) for w, key, value in _keys(body) if key in named and value is not None), None)


def _keys(body: Any) -> Iterator[tuple[Path, str, Any]]:
    """Yield the keys of all objects with where they stand and what they hold; without recursion, however deep it is."""
    waiting: list[tuple[Path, Any]] = [((), body)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield where, key, inner
                if key not in _OF_USERS and not (key == "input" and isinstance(inner, Mapping)):
                    waiting.append(((*where, key), inner))
        elif isinstance(value, list):
            waiting += [((*where, number), inner) for number, inner in enumerate(value)]


def _is_read(reads: Reads, where: Path, key: str) -> bool:
    if reads.fields and where == reads.fields:
        return key in FIELDS
    return reads.messages and key == TYPE_KEY and _is_message(where)


def _is_message(where: Path) -> bool:
    """Whether there stands a message, or a part of its content."""
    kinds = tuple(item if isinstance(item, str) else int for item in where)
    return kinds in (("messages", int), ("messages", int, "content", int))


def _what_to_do(route: str, reads: Reads, where: Path, key: str, meant: str) -> str:
    if where == reads.fields and where and meant not in OF_MESSAGES:
        hint = f" Did you mean {meant!r}?" if meant in FIELDS else ""
        return f": {key[:40]} is no field of HSA. Allowed: {', '.join(FIELDS)}.{hint}"
    if reads.messages and _is_message(where) and meant != key and meant == TYPE_KEY:
        return f": there is no such key. Did you mean {TYPE_KEY!r}?"
    is_of_messages = meant in OF_MESSAGES
    if is_of_messages and reads.messages:
        return f" is not read here. Give each message, or each part of its content, its {TYPE_KEY!r}."
    if not is_of_messages and reads.fields:
        inner = ": {".join(f'"{name}"' for name in (*reads.fields, meant if meant in FIELDS else FIELDS[0]))
        return f" is not read here. Send it within {inner}: …{'}' * len(reads.fields)}."
    return f" is not read by {route}: here rules and roles type a prompt, or its fields do. Send messages with a {TYPE_KEY!r} to {CHAT}."


def _name(path: Path) -> str:
    """Write a path as clients know it, such as ``messages[2].content``."""
    name = "".join(f"[{item}]" if isinstance(item, int) else f".{ascii(item)[1:-1][:40]}" for item in path)
    return name.removeprefix(".")
