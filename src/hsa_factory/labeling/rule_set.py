"""Rules in order: presets that come with the package, files, lists. Pure Python, and plain values on the way out."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..suggestions import did_you_mean
from .rule import ROLES, Rule


PRESET_DIRECTORY = Path(__file__).with_name("presets")
_ROLES = (*dict.fromkeys(ROLES.values()), None)


@dataclass(frozen=True)
class RuleSet:
    """Rules in order; for each character of a message the first one that matches wins.

    Args:
        rules: At least one; names are made different by numbers.

    Raises:
        ValueError: If there is no rule.
    """

    rules: tuple[Rule, ...]
    _by_role: dict[str | None, tuple[Rule, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("there is no rule in it.")
        seen: dict[str, int] = {}
        named = []
        for rule in self.rules:
            seen[rule.name] = seen.get(rule.name, 0) + 1
            number = seen[rule.name]
            named.append(rule if number == 1 else replace(rule, name=f"{rule.name} ({number})"))
        object.__setattr__(self, "rules", tuple(named))
        by_role = {role: tuple(rule for rule in named if not rule.role or role in rule.role) for role in _ROLES}
        object.__setattr__(self, "_by_role", by_role)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def of_role(self, role: str) -> tuple[Rule, ...]:
        """Return the rules for messages of a role, in order; a role that no rule can name has those without one."""
        return self._by_role[role if role in self._by_role else None]

    @property
    def names(self) -> list[str]:
        """The rules' names, in order."""
        return [rule.name for rule in self.rules]

    @classmethod
    def parse(cls, rules: Any) -> "RuleSet":
        """Read rules from what `hsa.rules` or ``--rules`` may be.

        Args:
            rules: A preset's name, the path of a YAML or JSON file, or a list of rules as mappings (an item
                ``{preset: name}`` stands for the preset's rules); also a mapping ``{rules: [...]}``, or a `RuleSet`.

        Raises:
            ValueError: If it is none of these, or a rule is not valid.
        """
        if isinstance(rules, cls):
            return rules
        if isinstance(rules, str):
            return read_rules(rules)
        return cls(_parse_list(rules))

    def to_list(self) -> list[dict[str, Any]]:
        """Return the rules as plain values, as `parse` reads them."""
        return [rule.to_dict() for rule in self.rules]


def preset_names() -> list[str]:
    """Return the names of the rules that come with the package."""
    return sorted(path.stem for path in PRESET_DIRECTORY.glob("*.yaml"))


def read_rules(source: str) -> RuleSet:
    """Read a preset, or a file of rules.

    Args:
        source: A preset's name or the path of a YAML or JSON file, from the working directory.

    Raises:
        ValueError: If there is neither, or it is not valid; the message names the source.
    """
    if source in preset_names():
        return _read_preset(source)

    if not os.path.isfile(source):
        hint = did_you_mean(source, preset_names())
        raise ValueError(f"rules {source!r}: neither a preset nor a file.{hint} Presets: {', '.join(preset_names())}.")
    return _read_file(Path(source))


@cache
def _read_preset(name: str) -> RuleSet:
    return _read_file(PRESET_DIRECTORY / f"{name}.yaml")


def _read_file(path: Path) -> RuleSet:
    import yaml  # only where a file is read: HSAConfig needs none

    try:
        return RuleSet(_parse_list(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML in UTF-8: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _parse_list(values: Any) -> tuple[Rule, ...]:
    if isinstance(values, Mapping) and set(values) == {"rules"}:
        values = values["rules"]
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise ValueError(f"expected a list of rules, got {values!r}.")

    rules: list[Rule] = []
    for number, value in enumerate(values, start=1):
        if isinstance(value, Rule):
            rules.append(value)
        elif not isinstance(value, Mapping):
            raise ValueError(f"rule {number}: expected a mapping such as {{role: user, type: GLOBAL}}, got {value!r}.")
        elif set(value) == {"preset"}:
            if value["preset"] not in preset_names():
                raise ValueError(
                    f"rule {number}: preset = {value['preset']!r} is not allowed: one of {', '.join(preset_names())}."
                )
            rules += _read_preset(value["preset"])
        else:
            try:
                rules.append(Rule.from_dict(value))
            except ValueError as error:
                text = str(error)
                named = text.startswith("rule ")
                raise ValueError(f"rule {number}, {text[5:]}" if named else f"rule {number}: {text}") from None
    return tuple(rules)
