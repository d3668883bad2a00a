"""Session traces: files of JSON lines, an event a line (the Hub's session format, Pi, Claude Code, Codex)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .blocks import BLOCKS, cut_after_last_reply, read_blocks


EVENTS_KEY = "events"  # of a sample that holds a session
_HEADERS = ("session", "session_meta")
_ROLES = ("system", "developer", "user", "assistant", "tool", "toolResult")
LEFT_OUT = "events that are no messages left out"


def is_event(line: Any) -> bool:
    """Whether a line of a file belongs to a session: a header, a message in an envelope, or what goes between them."""
    if not isinstance(line, Mapping) or not isinstance(line.get("type"), str):
        return False
    if line["type"] in _HEADERS:
        return True
    return isinstance(line.get("message"), Mapping) and line["type"] in ("message", "user", "assistant")


def is_header(line: Mapping[str, Any]) -> bool:
    """Whether a line begins a session."""
    return line.get("type") in _HEADERS


def detect(sample: Mapping[Any, Any]) -> bool:
    """Whether a sample holds the events of a session."""
    events = sample.get(EVENTS_KEY)
    return isinstance(events, list) and any(is_event(event) for event in events)


def to_messages(sample: Mapping[Any, Any], notes: Counter | None = None) -> list[dict[str, Any]]:
    """Return a session's messages, the way that was gone to its end: branches that were left are not in it."""
    messages = []
    for event in _last_branch(sample[EVENTS_KEY]):
        message = _read_event(event)
        if message is not None:
            messages.append(message)
        elif not is_header(event) and notes is not None:
            notes[LEFT_OUT] += 1
    return cut_after_last_reply(read_blocks(messages, notes), notes)


def _last_branch(events: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the events that lead to the last one (Pi's have a parent); all of them where that is not written."""
    known = {event["id"]: event for event in events if event.get("id") is not None and "parentId" in event}
    branch: list[Mapping[str, Any]] = []
    event = next((event for event in reversed(events) if event.get("id") in known), None)
    while event is not None and len(branch) <= len(known):
        branch.append(event)
        event = known.get(event.get("parentId"))
    return branch[::-1] if branch else events


def _read_event(event: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the message or item in an event; None: it is something else."""
    if event.get("isSidechain") or event.get("isMeta"):  # another agent's, or the program's own notes
        return None
    if event.get("type") == "response_item" and isinstance(event.get("payload"), Mapping):
        payload: Mapping[str, Any] = event["payload"]
        return payload if payload.get("role") in _ROLES or payload.get("type") in BLOCKS else None
    message = event.get("message")
    if is_event(event) and isinstance(message, Mapping) and message.get("role") in _ROLES:
        kept = ("role", "content", "reasoningContent", "toolCalls", "semantic_type")
        return {key: message[key] for key in kept if message.get(key) is not None}
    return None
