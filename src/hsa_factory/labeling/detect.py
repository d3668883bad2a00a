"""The format of samples that no ``dataset_info.json`` describes, from a look at some of them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from .formats import DatasetFormat
from .parts import TYPE_KEY
from .rule import ROLES
from .trajectories.blocks import is_foreign
from .trajectories.normalise import MESSAGE_COLUMNS, unwrap


_TAGS = {
    "user": "user_tag",
    "assistant": "assistant_tag",
    "observation": "observation_tag",
    "function": "function_tag",
}
_HELP = "Describe the data in dataset_info.json, and give that file with --dataset NAME."


def detect_entry(samples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what an entry of ``dataset_info.json`` for such samples holds, types included, without the file's name.

    Args:
        samples: At least one; keys and roles that none of them has are not known.

    Raises:
        ValueError: If they are in none of the formats.
    """
    samples = list(samples)
    unwrapped = [sample for sample in map(_unwrap, samples) if sample is not None]
    columns = {column for sample in unwrapped for column, value in sample.items() if value is not None}
    entry: dict[str, Any] = {}
    if {"chosen", "rejected"} <= columns:
        entry["ranking"] = True
    optional: list[str] = [name for name in ("system", "tools", "images", "videos", "audios") if name in columns]
    optional += ["chosen", "rejected"] if entry.get("ranking") else []
    listed = [name for name in MESSAGE_COLUMNS if name in columns and _holds_messages(unwrapped, name)]
    if listed:
        entry |= _detect_messages(unwrapped, listed[0])
        entry["columns"] = {"messages": listed[0]}
    elif "instruction" in columns and ({"output"} <= columns or entry.get("ranking")):
        entry["columns"] = {"prompt": "instruction", "query": "input", "response": "output"}
        optional += ["history"] if "history" in columns else []
        entry["tags"] = {"semantic_tag": TYPE_KEY}
    else:
        _refuse_known(columns, samples)
        found = ", ".join(map(repr, sorted(columns))) or "nothing"
        raise ValueError(
            f"expected `messages`, `conversations`, or `instruction` and `output`, found {found}. {_HELP}"
        )
    entry["columns"] |= {name: name for name in optional}
    return entry


def _unwrap(sample: Mapping[str, Any]) -> Mapping[str, Any] | None:
    try:
        return unwrap(sample)
    except (ValueError, TypeError, KeyError, AttributeError):  # said with its place when it is labelled
        return None


def _holds_messages(samples: Sequence[Mapping[str, Any]], column: str) -> bool:
    if column in ("messages", "conversations"):
        return True
    return any(isinstance(message, Mapping) for sample in samples for message in _as_list(sample.get(column)))


def _refuse_known(columns: set[str], samples: Sequence[Mapping[str, Any]]) -> None:
    """Say why samples of a format that is known cannot be read."""
    if "source" in columns and columns & {"action", "observation"}:
        raise ValueError(
            "these are events of OpenHands, not messages as the model saw them. Export its conversations (`messages`, or "
            "`trajectory` as in SWE-rebench), or convert the events to messages."
        )
    if any(isinstance(sample.get(name), list) for sample in samples for name in ("chosen", "rejected")):
        raise ValueError(
            "`chosen` and `rejected` are conversations, but LLaMA-Factory compares single replies: put what both share "
            "into `messages`, and one reply each into `chosen` and `rejected`."
        )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _detect_messages(samples: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any]:
    """Return format and tags of samples with a list of messages."""
    messages = [
        message for sample in samples for message in _as_list(sample.get(column)) if isinstance(message, Mapping)
    ]
    keys = {key for message in messages for key in message}
    pairs = [(role, content) for role, content in (("role", "content"), ("from", "value")) if {role, content} <= keys]
    if len(pairs) != 1:
        raise ValueError(f"{column}: expected messages with `role` and `content`, or `from` and `value`. {_HELP}")

    (role_key, content_key), defaults = pairs[0], DatasetFormat()
    tags = {"role_tag": role_key, "content_tag": content_key}
    roles = _names_of_roles(messages, role_key)
    for role, tag in _TAGS.items():
        names = roles.get(role, [])
        if len(names) > 1:
            raise ValueError(f"{column}: the role {role!r} has several names, {', '.join(map(repr, names))}. {_HELP}")
        fallback = getattr(defaults, tag) if role_key == "from" or role not in ("user", "assistant") else role
        tags[tag] = names[0] if names else fallback
    tags |= {"system_tag": "system", "semantic_tag": TYPE_KEY}
    is_openai = "tool" in roles.get("observation", []) or any(
        message.get("tool_calls") or message.get("function_call") or is_foreign(message, message.get(content_key))
        for message in messages
    )
    return {"formatting": "openai" if is_openai else "sharegpt", "tags": tags}


def _names_of_roles(messages: Sequence[Mapping[str, Any]], role_key: str) -> dict[str, list[str]]:
    """Return the names that each role has, in the order of the messages.

    `function` is what a function replied, as in OpenAI's former format and ToolBench, where such a message names the
    function, another one is a `function_call`, or such a message comes after a reply.
    """
    replies = any(
        message.get("function_call") or (message.get(role_key) == "function" and message.get("name"))
        for message in messages
    ) or any(
        ROLES.get(str(before.get(role_key))) == "assistant" and after.get(role_key) == "function"
        for before, after in pairwise(messages)
    )
    names = dict.fromkeys(message[role_key] for message in messages if isinstance(message.get(role_key), str))
    roles: dict[str, list[str]] = {}
    for name in names:
        role = "observation" if name == "function" and replies else ROLES.get(name)
        if role is not None:
            roles.setdefault(role, []).append(name)
    if len(roles.get("observation", [])) > 1 and "function" in roles["observation"]:
        roles["observation"].remove("function")  # each of its messages is taken for a reply anyhow
    return roles


def tagged_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of ``dataset_info.json`` with a tag for the types that are going to be written."""
    tags = dict(entry.get("tags") or {})
    if tags.get("semantic_tag") is None:
        if not tags and entry.get("formatting", "alpaca") != "alpaca":
            defaults = DatasetFormat()  # a `tags` block replaces all of LLaMA-Factory's defaults
            names = ("role_tag", "content_tag", *_TAGS.values(), "system_tag")
            tags = {name: getattr(defaults, name) for name in names}
        tags["semantic_tag"] = TYPE_KEY
    return {**entry, "tags": tags}
