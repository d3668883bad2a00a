"""Trajectories of SWE-agent: a ``.traj`` file with `history` and `trajectory`, and rows with texts instead of contents."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .blocks import cut_after_last_reply, read_blocks


_ROLES = {"ai": "assistant"}


def detect(sample: Mapping[Any, Any]) -> bool:
    """Whether a sample is one."""
    steps = sample.get("trajectory")
    if not isinstance(steps, list) or not steps or not isinstance(steps[0], Mapping):
        return False
    return {"action", "observation"} <= set(steps[0]) or ("role" in steps[0] and "text" in steps[0])


def to_messages(sample: Mapping[Any, Any], notes: Counter | None = None) -> list[dict[str, Any]]:
    """Return its messages: those of `history`, as the model was shown them, or else made of the steps.

    Demonstrations and the task, both of the user's, become one message.
    """
    history = sample.get("history")
    if isinstance(history, list) and history:
        messages = [_read_entry(entry) for entry in history]
    elif "text" in sample["trajectory"][0]:
        messages = [_read_row(row) for row in sample["trajectory"]]
    else:
        messages = _read_steps(sample["trajectory"])
    return cut_after_last_reply(read_blocks(messages, notes), notes)


def _read_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    message = {"role": entry.get("role"), "content": entry.get("content")}
    if entry.get("tool_calls"):
        message["tool_calls"] = entry["tool_calls"]
    thinking = [block["thinking"] for block in entry.get("thinking_blocks") or [] if block.get("thinking")]
    reasoning = entry.get("reasoning_content") or "\n\n".join(thinking)
    return {**message, "reasoningContent": reasoning} if reasoning else message


def _read_row(row: Mapping[str, Any]) -> dict[str, Any]:
    role = _ROLES.get(row["role"], row["role"])
    return {"role": role, "content": row.get("text") or row.get("system_prompt") or ""}


def _read_steps(steps: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages that the steps tell of: the first query, then replies and observations in turn."""
    first = steps[0].get("query") or steps[0].get("messages") or []
    messages = [_read_entry(entry) for entry in first if entry.get("role") is not None]
    for step in steps:
        reply = step.get("response") or "\n".join(filter(None, (step.get("thought"), step.get("action"))))
        messages.append({"role": "assistant", "content": reply})
        messages.append({"role": "user", "content": step.get("observation") or ""})
    return messages
