"""The option `rules` of `HSAConfig`, and `labels`, its former name."""

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

from .labeling.rule_set import RuleSet, preset_names


_NOT_GIVEN: Any = object()
_Class = TypeVar("_Class")


def parse_rules(name: str, value: Any) -> str | RuleSet | None:
    """Return what a configuration holds: a preset's name, or the rules themselves, which nothing can change.

    Args:
        name: The option, for the message.
        value: As for `RuleSet.parse`, or None.

    Raises:
        ValueError: If it is neither.
    """
    if value is None or (isinstance(value, str) and value in preset_names()):
        return value
    try:
        return RuleSet.parse(value)
    except ValueError as error:
        raise ValueError(f"HSAConfig.{name}: {error}") from None


def agreed_rules(labels: Any, rules: Any) -> str | RuleSet | None:
    """Return the rules that were given by one name, or by both.

    Raises:
        ValueError: If the two differ.
    """
    former, current = parse_rules("labels", labels), parse_rules("rules", rules)
    if former is not None and current is not None and former != current:
        raise ValueError(
            "HSAConfig: rules and labels are two names of one option, and both are given with different values. Leave "
            "labels out."
        )
    return current if former is None else former


def takes_labels(config_class: type[_Class]) -> type[_Class]:
    """Let a configuration be made with `labels`, too.

    `dataclasses.replace(config, labels=…)` gives all options as they are, `rules` too, and `labels` as the change.
    """
    make: Callable[..., None] = vars(config_class)["__init__"]

    @wraps(make)
    def make_with_either(self: Any, *args: Any, labels: Any = _NOT_GIVEN, **options: Any) -> None:
        if labels is not _NOT_GIVEN:
            is_replace = all(field.name in options for field in fields(self))
            options["rules"] = (
                parse_rules("labels", labels) if is_replace else agreed_rules(labels, options.get("rules"))
            )
        make(self, *args, **options)

    setattr(config_class, "__init__", make_with_either)
    return config_class
