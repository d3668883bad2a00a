"""One rule: conditions, and the type of what they describe. Pure Python; how it matches is in `matching`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import regex

from ..semantics import SemanticType
from ..suggestions import did_you_mean


ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function": "function",
    "function_call": "function",
    "tool_call": "function",
    "observation": "observation",
    "tool": "observation",
}
"""Every accepted name of a role, and the role it means: `function` calls a tool, `observation` is its reply."""

_PROMPT_ROLES = {**ROLES, "developer": "system"}

TURNS = {"first": 0, "last": -1}
MEDIA = ("image", "video", "audio")
SPAN_GROUP = "span"  # a named group of a pattern that limits what is typed


@dataclass(frozen=True)
class Rule:
    """One rule: every condition that is given must hold; then what it describes has the type.

    Conditions on the message: `role`, `turn`, `contains`, `tool` (without `tag`). A rule with no others types the whole
    message. Conditions on its text: `tag`, `pattern` or `media` (one of them), `verbs`, and `tool` with `tag`. A rule
    with one of these types the parts of the text that it describes. A field with several values holds if one of them
    does.

    Args:
        type: The `SemanticType`, by name or number.
        name: For messages and reports; made from the conditions if empty.
        role: `system`, `user`, `assistant`, `function`, `observation`, or another name in `ROLES`.
        turn: Numbers from 0 (negative: from the end), `first` or `last`, counted among the messages that `role` names;
            without `role` among all but the system message.
        contains: Texts; one of them stands in the message.
        tool: Names of tools, with ``*`` and ``?`` as in file names: the message calls one of them (role `function`) or
            answers such a call (role `observation`); with `tag`, the element holds a call of one of them as JSON.
        tag: Names of XML-like elements, ``<name>…</name>``, typed with their tags.
        verbs: What the element's text, or the matched text, begins with, in any case.
        pattern: A regular expression (of the `regex` package); a group named ``span`` limits what is typed.
        media: `image`, `video`, `audio`: their placeholders.

    Raises:
        ValueError: If a value is not allowed; the message names the rule, the field, the value and what is allowed.
    """

    type: SemanticType
    name: str = ""
    role: tuple[str, ...] = ()
    turn: tuple[int, ...] = ()
    contains: tuple[str, ...] = ()
    tool: tuple[str, ...] = ()
    tag: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    pattern: str | None = None
    media: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("role", "turn", "contains", "tool", "tag", "verbs", "media"):
            object.__setattr__(self, field, self._tuple(field))
        if not isinstance(self.name, str):
            self._fail("name", "a text")
        try:
            object.__setattr__(self, "type", SemanticType.parse(self.type))
        except ValueError as error:
            raise ValueError(f"rule {self.name or self._describe()!r}: type: {error}") from None

        roles = [ROLES.get(role) if isinstance(role, str) else None for role in self.role]
        if None in roles:
            self._fail("role", f"one of {', '.join(ROLES)}, or a list of them")
        object.__setattr__(self, "role", tuple(dict.fromkeys(roles)))
        turns = [TURNS.get(turn, turn) if isinstance(turn, str) else turn for turn in self.turn]
        if any(isinstance(turn, bool) or not isinstance(turn, int) for turn in turns):
            self._fail("turn", "first, last, a whole number (0 is the first, -1 the last), or a list of them")
        object.__setattr__(self, "turn", tuple(turns))
        for field in ("contains", "tool", "tag", "verbs"):
            if not all(isinstance(text, str) and text.strip() for text in getattr(self, field)):
                self._fail(field, "a text that is not empty, or a list of them (write yes, no, on and off in quotes)")
        if any(char in "<>/" for tag in self.tag for char in tag):
            self._fail("tag", "the name alone, without < > and /")
        if any(media not in MEDIA for media in self.media):
            self._fail("media", f"one of {', '.join(MEDIA)}, or a list of them")
        self._check_pattern()
        self._check_combination()
        if not self.name:
            object.__setattr__(self, "name", self._describe())

    def _tuple(self, field: str) -> tuple:
        value = getattr(self, field)
        if value is None:
            return ()
        if isinstance(value, (list, tuple)):
            if not value and not isinstance(value, tuple):
                self._fail(field, "at least one value; leave the field out to drop the condition")
            return tuple(value)
        return (value,)

    def _check_pattern(self) -> None:
        if self.pattern is None:
            return
        if not isinstance(self.pattern, str) or not self.pattern:
            self._fail("pattern", "a regular expression")
        try:
            compile_pattern(self.pattern)
        except regex.error as error:
            self._fail("pattern", f"a regular expression ({error})")

    def _check_combination(self) -> None:
        on_text = [field for field in ("tag", "pattern", "media") if getattr(self, field)]
        if len(on_text) > 1:
            self._fail(on_text[1], f"not together with {on_text[0]}; write two rules")
        if self.verbs and not (self.tag or self.pattern):
            self._fail("verbs", "only with tag or pattern, whose text they begin")
        if self.tool and (self.pattern or self.media):
            self._fail("tool", f"not together with {on_text[0]}")
        if self.tool and not self.tag and not set(self.role) <= {"function", "observation"}:
            self._fail("tool", "only with role function or observation, or with tag")

    def _describe(self) -> str:
        parts = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in ((), None, "") and field.name not in ("type", "name"):
                parts.append(f"{field.name} {'|'.join(map(str, value)) if isinstance(value, tuple) else value}")
        return ", ".join(parts) or "everything"

    def _fail(self, field: str, allowed: str) -> None:
        value = getattr(self, field)
        if isinstance(value, tuple):
            value = value[0] if len(value) == 1 else list(value)
        name = self.name if isinstance(self.name, str) and self.name else self._describe()
        raise ValueError(f"rule {name!r}: {field} = {value!r} is not allowed: {allowed}.")

    @property
    def types_parts(self) -> bool:
        """Whether it types parts of a text, not whole messages."""
        return bool(self.tag or self.pattern or self.media)

    @property
    def decided(self) -> str:
        """When the rule's verdict on a message is known, for a reader that sees the text arrive piece by piece.

        ``start``: before its text (by role, turn, tool). ``open``: at the opening tag or the placeholder. ``close``:
        at the closing tag, as the element's text is looked at. ``end``: with the whole message (`contains`,
        `pattern`), or the whole conversation (a `turn` counted from the end).
        """
        if self.contains or self.pattern or any(turn < 0 for turn in self.turn):
            return "end"
        if self.tag:
            return "close" if self.verbs or self.tool else "open"
        if self.media:
            return "open"
        return "end" if self.tool and "observation" not in self.role else "start"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Rule":
        """Build a rule from a mapping.

        Raises:
            ValueError: If a key is unknown (with a suggestion), `type` is missing, or a value is not allowed.
        """
        allowed = [field.name for field in fields(cls)]
        for key in values:
            if key not in allowed:
                raise ValueError(f"unknown key {key!r}.{did_you_mean(key, allowed)} Allowed: {', '.join(allowed)}.")
        if "type" not in values:
            raise ValueError("type is missing: GLOBAL, LANDMARK or NOISE.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON and YAML can hold; conditions that are not given are left out."""
        values: dict[str, Any] = {"name": self.name, "type": self.type.name}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in values and value not in ((), None):
                values[field.name] = list(value) if isinstance(value, tuple) else value
        return values


@cache
def compile_pattern(pattern: str) -> Any:
    """Compile a rule's pattern, once.

    Raises:
        regex.error: If it is not valid.
    """
    return regex.compile(pattern)


def read_roles(names: Iterable[str]) -> tuple[str, ...]:
    """Return the roles that the messages of a prompt have, one of those in `ROLES` each.

    Args:
        names: As a client calls them.

    Raises:
        ValueError: If a name is none of a role; it would not be counted.
    """
    roles = []
    for name in names:
        role = _PROMPT_ROLES.get(name.strip())
        if role is None:
            hint = did_you_mean(name, list(_PROMPT_ROLES))
            raise ValueError(f"unknown role {name[:40]!r}.{hint} Allowed: {', '.join(_PROMPT_ROLES)}.")
        roles.append(role)
    return tuple(roles)
