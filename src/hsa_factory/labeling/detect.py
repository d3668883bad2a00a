"""The format of samples that no ``dataset_info.json`` describes, from a look at some of them."""

from collections.abc import Iterable, Mapping
from typing import Any

from .formats import DatasetFormat
from .parts import TYPE_KEY
from .rule import ROLES


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
    columns = {column for sample in samples for column, value in sample.items() if value is not None}
    entry: dict[str, Any] = {}
    if {"chosen", "rejected"} <= columns:
        entry["ranking"] = True
    optional: list[str] = [name for name in ("system", "tools", "images", "videos", "audios") if name in columns]
    optional += ["chosen", "rejected"] if entry.get("ranking") else []
    listed = [name for name in ("messages", "conversations") if name in columns]
    if listed:
        entry |= _detect_messages(samples, listed[0])
        entry["columns"] = {"messages": listed[0]}
    elif "instruction" in columns and ({"output"} <= columns or entry.get("ranking")):
        entry["columns"] = {"prompt": "instruction", "query": "input", "response": "output"}
        optional += ["history"] if "history" in columns else []
        entry["tags"] = {"semantic_tag": TYPE_KEY}
    else:
        found = ", ".join(map(repr, sorted(columns))) or "nothing"
        raise ValueError(
            f"expected `messages`, `conversations`, or `instruction` and `output`, found {found}. {_HELP}"
        )
    entry["columns"] |= {name: name for name in optional}
    return entry


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _detect_messages(samples: list[Mapping[str, Any]], column: str) -> dict[str, Any]:
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
    roles = dict.fromkeys(message[role_key] for message in messages if isinstance(message.get(role_key), str))
    for role, tag in _TAGS.items():
        names = [name for name in roles if ROLES.get(name) == role]
        if len(names) > 1:
            raise ValueError(f"{column}: the role {role!r} has several names, {', '.join(map(repr, names))}. {_HELP}")
        fallback = getattr(defaults, tag) if role_key == "from" or role not in ("user", "assistant") else role
        tags[tag] = names[0] if names else fallback
    tags |= {"system_tag": "system", "semantic_tag": TYPE_KEY}
    is_openai = any(message.get("tool_calls") for message in messages) or "tool" in roles
    return {"formatting": "openai" if is_openai else "sharegpt", "tags": tags}


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
