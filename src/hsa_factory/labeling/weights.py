"""Whether a message is trained, and how much: the ways in which data say it, read as one number."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple

from ..suggestions import did_you_mean
from .formats import SampleMessage


WEIGHT_KEYS = ("weight", "loss", "loss_mask", "loss_weight", "trainable")
"""Keys of a message that say it. What `loss` holds is a number often enough that is no weight: only a switch is read."""

STEP_KEY = "step_label"
STEP_LABELS: Mapping[str, float] = {"good": 1.0, "unnecessary": 0.0, "mistake": 0.0, "recover": 1.0}
SMALLEST, LARGEST = 1e-6, 1e6  # between them a mean of float32 numbers is exact enough

_KEYS = frozenset(WEIGHT_KEYS)
_SWITCHES = ("loss", "loss_mask", "trainable")  # keys that may hold true and false


class StepLabels(NamedTuple):
    """What the labels of steps mean.

    Attributes:
        weights: Weight by label, in lower case.
        key: Key of a message that holds its label; None: labels are not read.
    """

    weights: Mapping[str, float] = STEP_LABELS
    key: str | None = STEP_KEY


def read_weight(turn: SampleMessage, labels: StepLabels = StepLabels()) -> float | None:
    """Read how much a message is trained: 0 not at all, 1 as usual, other numbers scale its loss.

    Args:
        turn: As `read_sample` returns it.
        labels: What a label of a step means.

    Returns:
        The weight; None: the message does not say.

    Raises:
        ValueError: If a value is none that is allowed, or two keys disagree; names the turn and the keys.
    """
    source = turn.source
    if source is None or (_KEYS.isdisjoint(source) and labels.key not in source):
        return None
    given = {key: source[key] for key in WEIGHT_KEYS if source.get(key) is not None}
    weights = {f"{key} {value!r}": _parse(key, value, turn.where) for key, value in given.items()}
    label = source.get(labels.key) if labels.key is not None else None
    if label is not None and label != "":
        weights[f"{labels.key} {label!r}"] = _weight_of(label, labels, turn.where)
    if not weights:
        return None

    amounts = {float(weight) for weight in weights.values() if weight is not True}  # true does not say how much
    if len(amounts) > 1 or (0.0 in amounts and True in map(_is_true, weights.values())):
        raise ValueError(
            f"{turn.where}: {' and '.join(weights)} disagree on how much the message is trained. Leave one of them."
        )
    return amounts.pop() if amounts else 1.0


def check_amount(value: Any) -> float:
    """Return a weight as a number.

    Raises:
        ValueError: If it is none, or none that is allowed.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number and (value == 0 or (math.isfinite(value) and SMALLEST <= value <= LARGEST)):
        return float(value)
    raise ValueError(f"a weight is 0, or a number from {SMALLEST} to {LARGEST:.0f}")


def _parse(key: str, value: Any, where: str) -> float | bool:
    """Return the weight that a key gives; True where it only says that there is one."""
    if isinstance(value, bool) and key in _SWITCHES:
        return value
    try:
        amount = check_amount(value)
        if key == "loss" and amount not in (0.0, 1.0):
            raise ValueError("loss is true or false")
    except ValueError as error:
        raise ValueError(
            f"{where}: {key} {value!r} is not allowed: 0 keeps the message out of the loss, 1 or no {key} trains it as "
            f"usual, other numbers scale its loss ({error})."
        ) from None
    return amount


def _weight_of(label: Any, labels: StepLabels, where: str) -> float:
    name = str(label).strip().lower()
    if name not in labels.weights:
        raise ValueError(
            f"{where}: {labels.key} {label!r} has no weight.{did_you_mean(name, list(labels.weights))} Known: "
            f"{', '.join(labels.weights)}. Add it to `step_labels` of the block `loss_weights`, or write `step_key: none` "
            "there if this key does not say what is trained."
        )
    return labels.weights[name]


def _is_true(weight: float | bool) -> bool:
    return weight is True
