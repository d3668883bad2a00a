"""The block `loss_weights`: how much messages are trained that have no weight of their own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .config import ROLES, _Config
from .labeling.formats import SampleMessage
from .labeling.weights import STEP_KEY, STEP_LABELS, StepLabels, check_amount, read_weight
from .suggestions import did_you_mean


_WEIGHED_ROLES = tuple(role for role in ROLES if role != "system")  # the system prompt shares a turn with the user


@dataclass(frozen=True)
class LossWeightsConfig(_Config):
    """How much messages are trained, by the label of a step or by role. A weight is 0, or a number from 1e-6 to 1e6.

    Args:
        step_labels: Weights by label, in any case; beside, or in the stead of, ``good`` 1, ``recover`` 1, ``mistake`` 0 and
            ``unnecessary`` 0.
        step_key: Key of a message that holds its label; None: labels are not read.
        roles: Weights by role, ``user``, ``observation``, ``assistant`` or ``function``, of messages without a weight and
            without a label. A role that the model only reads is trained with it, too.

    Raises:
        ValueError: If a value is not allowed.
    """

    step_labels: Mapping[str, float] = field(default_factory=dict)
    step_key: str | None = STEP_KEY
    roles: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = {name.strip().lower(): weight for name, weight in self._weights("step_labels").items()}
        object.__setattr__(self, "step_labels", {**STEP_LABELS, **given})
        object.__setattr__(self, "roles", self._weights("roles"))
        for role in self.roles:
            if role not in _WEIGHED_ROLES:
                allowed = f"one of {', '.join(_WEIGHED_ROLES)}.{did_you_mean(role, _WEIGHED_ROLES)}"
                raise ValueError(f"{type(self).__name__}.roles: role {role!r} is not allowed: {allowed}")
        if self.step_key is not None and (not isinstance(self.step_key, str) or not self.step_key):
            self._fail("step_key", "the name of a message's key, or none")

    def _weights(self, name: str) -> dict[str, float]:
        table: Any = getattr(self, name)
        if not isinstance(table, Mapping):
            self._fail(name, "a mapping of names to weights")
        weights = {}
        for key, value in table.items():
            try:
                weights[str(key)] = check_amount(value)
            except ValueError as error:
                raise ValueError(f"{type(self).__name__}.{name}.{key} = {value!r} is not allowed: {error}.") from None
        return weights

    @property
    def labels(self) -> StepLabels:
        """What the labels of steps mean."""
        return StepLabels(self.step_labels, self.step_key)


def weigh_turn(turn: SampleMessage, config: LossWeightsConfig) -> float | None:
    """Return how much a message is trained: by its own weight or label, or else by its role.

    Args:
        turn: As `read_sample` returns it.
        config: What labels mean, and weights by role.

    Returns:
        The weight; None: it is trained as its role is.

    Raises:
        ValueError: As `read_weight`.
    """
    weight, by_role = read_weight(turn, config.labels), config.roles.get(turn.message.role)
    if weight == 1 and by_role is None:  # what its role makes of it
        weight = None
    return by_role if weight is None else weight
