"""Semantic types: what a token is to the trajectory it stands in."""

from enum import IntEnum
from typing import Any


class SemanticType(IntEnum):
    """The semantic type of a token, as stored in ``semantic_ids``.

    The numbers order the types by how long they are remembered: the smaller one remembers more.
    """

    GLOBAL = 0
    """Task, rules, tools: in sight for ever."""

    LANDMARK = 1
    """Key events (pick up, open, put …): fade slowly with distance."""

    NOISE = 2
    """Navigation, thoughts, passing observations: visible within a short window only."""

    @classmethod
    def parse(cls, value: Any) -> "SemanticType":
        """Read a semantic type from a name in any case, an alias, or a number from 0 to 2.

        Args:
            value: ``"GLOBAL"``, ``"GLOBAL_CONDITION"``, ``"LANDMARK"``, ``"KEY_EVENT"``, ``"NOISE"``,
                ``"PROCESS_NOISE"`` in any case, the numbers 0, 1, 2 (also as text), or a `SemanticType`.

        Returns:
            The semantic type.

        Raises:
            ValueError: If the value is none of these.
        """
        if isinstance(value, cls):
            return value

        if isinstance(value, str):
            name = value.strip().upper()
            if name in ALIASES:
                return ALIASES[name]
            if name in {"0", "1", "2"}:
                return cls(int(name))
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and value in (0, 1, 2):
            return cls(int(value))

        raise ValueError(
            f"Unknown semantic type {value!r}. Allowed: {', '.join(ALIASES)} (in any case), or the numbers 0 to 2."
        )


ALIASES: dict[str, SemanticType] = {
    "GLOBAL": SemanticType.GLOBAL,
    "GLOBAL_CONDITION": SemanticType.GLOBAL,
    "LANDMARK": SemanticType.LANDMARK,
    "KEY_EVENT": SemanticType.LANDMARK,
    "NOISE": SemanticType.NOISE,
    "PROCESS_NOISE": SemanticType.NOISE,
}
"""Every accepted name of a semantic type."""
