"""The two configurations, `HSAConfig` and `FeedbackConfig`: small, frozen, validated, saved beside checkpoints."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, get_args

from . import strict_json
from .labeling.rule_set import RuleSet
from .presets import BLOCK_KEYS, with_preset
from .rules_option import agreed_rules, parse_rules, takes_labels
from .semantics import SemanticType
from .suggestions import did_you_mean
from .whole_files import write_whole


CONFIG_NAME = "hsa_config.json"
NOTE_KEY = "hsa"  # in a model's config.json: a text for people, and for programs that do not know HSA
FORMAT_VERSION = 1  # of that file; a file without one is of version 1
BACKENDS = ("auto", "reference", "dense", "blockwise", "flex", "triton")
ROLES = ("user", "observation", "assistant", "function", "system")  # of messages, as LLaMA-Factory names them
_KINDS = ("global", "landmark", "noise")  # as options name the types, in their order


class _UnlessTurns:
    """Default of an option of NOISE: what holds where `noise_turns` is not given, and what holds where it is."""

    def __init__(self, without_turns: float, with_turns: float | None) -> None:
        self.without_turns, self.with_turns = without_turns, with_turns

    def __repr__(self) -> str:
        return repr(self.without_turns)


_NOISE_DECAY: Any = _UnlessTurns(0.5, 0.0)
_NOISE_WINDOW: Any = _UnlessTurns(50, None)


@dataclass(frozen=True)
class _Config:
    """What both configurations share: reading from a mapping and writing back."""

    _MORE_KEYS: ClassVar[tuple[str, ...]] = ()  # of a training file's block that are no options

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build the configuration from a mapping; an unknown key is an error with a suggestion.

        Args:
            values: Values by option. The text ``none`` is None where an option may be None.

        Raises:
            ValueError: If a key or a value is not allowed.
        """
        if not isinstance(values, dict):
            raise ValueError(f"{cls.__name__}: expected a mapping of options, got {values!r}.")

        values = cls._read_none(values)
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                allowed = [*known, *cls._MORE_KEYS]
                raise ValueError(
                    f"{cls.__name__}: unknown key {key!r}.{did_you_mean(key, allowed)} Allowed: {', '.join(allowed)}."
                )

        return cls(**values)

    @classmethod
    def _read_none(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return values with None for ``none``; in YAML that is a text, and an option left empty would be None too."""
        optional = {field.name for field in fields(cls) if type(None) in get_args(field.type)} | {"labels"}
        return {
            name: None if name in optional and isinstance(value, str) and value.lower() == "none" else value
            for name, value in values.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values that JSON and YAML can hold."""
        return asdict(self)

    def _fail(self, field: str, allowed: str) -> NoReturn:
        raise ValueError(f"{type(self).__name__}.{field} = {getattr(self, field)!r} is not allowed: {allowed}.")


@takes_labels
@dataclass(frozen=True)
class HSAConfig(_Config):
    """How Hierarchical Semantic Attention biases the attention logits (before softmax).

    For query position i and key position j ≤ i of one document, with d = i − j and t the type of key j, the
    logit gets −decay(t)·d. A type without window and turns is seen for ever. Otherwise a key is seen if d ≤ window
    (where given) or if it is at most `turns` turns old (where given); else it is invisible (probability exactly 0). A
    turn ends with a reply, as `turn_ids` say.

    Args:
        landmark_decay: Slope of LANDMARK keys, in logits per token, ≥ 0.
        landmark_window: Largest distance at which a LANDMARK key is seen; None: not given.
        landmark_turns: For how many turns after its own a LANDMARK key is seen, ≥ 0; None: not given.
        noise_decay: Slope of NOISE keys, ≥ 0. Left out: 0.5, or 0 where `noise_turns` is given.
        noise_window: Largest distance at which a NOISE key is seen; None: not given. Left out: 50, or None where
            `noise_turns` is given.
        noise_turns: For how many turns after its own a NOISE key is seen; 0: to the end of the reply of its own turn.
        global_decay: Slope of GLOBAL keys, ≥ 0.
        global_window: Largest distance at which a GLOBAL key is seen; None: not given.
        global_turns: For how many turns after its own a GLOBAL key is seen; None: not given.
        hide: Pairs (query type, key type) that never see each other, as names or numbers. A token always sees
            itself all the same.
        backend: ``auto``, ``reference``, ``dense``, ``blockwise`` or ``flex``.
        layers: Indices of the layers that use HSA, at least one; None: all softmax attention layers.
        default_type: Type of a message that has none.
        generated_type: Type of generated tokens; None: `default_type`.
        rules: Rules that give types to messages, or parts of them, that have none of their own: a preset's name, a list
            of rules as mappings, a `RuleSet`, or the path of a YAML file, in whose place the rules in it are kept.
            None: there are none. `labels` is its former name, taken wherever `rules` is; it never means the labels of
            the loss.

    Raises:
        ValueError: If a value is not allowed; the message names the field, the value and what is allowed.

    Example:
        A conversation of five tokens, seen from the last one:

        >>> config = HSAConfig(noise_window=2)

        ===========  ========  =======  ==========  ==========  ==========
        token        pick      walk     walk        open        done
        type         GLOBAL    NOISE    NOISE       LANDMARK    GLOBAL
        distance d   4         3        2           1           0
        added logit  0         −∞       −0.5 · 2    −0.001 · 1  0
        ===========  ========  =======  ==========  ==========  ==========
    """

    _MORE_KEYS: ClassVar[tuple[str, ...]] = BLOCK_KEYS
    landmark_decay: float = 0.001
    landmark_window: int | None = None
    landmark_turns: int | None = None
    noise_decay: float = _NOISE_DECAY
    noise_window: int | None = _NOISE_WINDOW
    noise_turns: int | None = None
    global_decay: float = 0.0
    global_window: int | None = None
    global_turns: int | None = None
    hide: tuple[tuple[int, int], ...] = ()
    backend: str = "auto"
    layers: tuple[int, ...] | None = None
    default_type: str | int = "GLOBAL_CONDITION"
    generated_type: str | int | None = None
    rules: str | RuleSet | Sequence[Mapping[str, Any]] | None = None

    if TYPE_CHECKING:
        labels: str | RuleSet | Sequence[Mapping[str, Any]] | None = None
    else:

        @property
        def labels(self):
            """The former name of `rules`."""
            return self.rules

    def __post_init__(self) -> None:
        for name in ("noise_decay", "noise_window"):
            default = getattr(self, name)
            if isinstance(default, _UnlessTurns):
                holds = default.without_turns if self.noise_turns is None else default.with_turns
                object.__setattr__(self, name, holds)

        for name in ("landmark_decay", "noise_decay", "global_decay"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                self._fail(name, "a number ≥ 0")
            if not math.isfinite(value) or value < 0:
                self._fail(name, "a finite number ≥ 0")
            object.__setattr__(self, name, float(value))

        for name in [f"{kind}_{limit}" for limit in ("window", "turns") for kind in _KINDS]:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                self._fail(name, "a whole number ≥ 0, or none")

        if self.backend not in BACKENDS:
            self._fail("backend", f"one of {', '.join(BACKENDS)}")

        object.__setattr__(self, "rules", parse_rules("rules", self.rules))
        object.__setattr__(self, "hide", self._parse_hide())
        object.__setattr__(self, "layers", self._parse_layers())
        for name in ("default_type", "generated_type"):
            value = getattr(self, name)
            if value is None and name == "generated_type":
                continue
            try:
                number = int(SemanticType.parse(value))
            except ValueError as error:
                raise ValueError(f"HSAConfig.{name}: {error}") from None
            if not isinstance(value, str):
                object.__setattr__(self, name, number)

    def _parse_hide(self) -> tuple[tuple[int, int], ...]:
        if not isinstance(self.hide, Sequence) or isinstance(self.hide, str):
            self._fail("hide", "a list of pairs [query type, key type]")

        pairs = set()
        for pair in self.hide:
            if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
                self._fail("hide", "a list of pairs [query type, key type]")
            try:
                pairs.add((int(SemanticType.parse(pair[0])), int(SemanticType.parse(pair[1]))))
            except ValueError as error:
                raise ValueError(f"HSAConfig.hide: {error}") from None

        return tuple(sorted(pairs))

    def _parse_layers(self) -> tuple[int, ...] | None:
        if self.layers is None:
            return None

        if not isinstance(self.layers, Sequence) or isinstance(self.layers, str):
            self._fail("layers", "a list of layer indices ≥ 0, or none for all layers")
        if not self.layers:
            self._fail(
                "layers", "it would be HSA in no layer. Name layers, or none for all; hsa: false switches HSA off"
            )
        for index in self.layers:
            if isinstance(index, bool) or not isinstance(index, int) or index < 0:
                self._fail("layers", "a list of layer indices ≥ 0, or none for all layers")

        return tuple(sorted(set(self.layers)))

    @property
    def decays(self) -> tuple[float, float, float]:
        """Decay of a key, indexed by its `SemanticType`."""
        return (self.global_decay, self.landmark_decay, self.noise_decay)

    @property
    def windows(self) -> tuple[int | None, int | None, int | None]:
        """Window of a key, indexed by its `SemanticType`; None: not given."""
        return (self.global_window, self.landmark_window, self.noise_window)

    @property
    def turns(self) -> tuple[int | None, int | None, int | None]:
        """For how many turns after its own a key is seen, indexed by its `SemanticType`; None: not given."""
        return (self.global_turns, self.landmark_turns, self.noise_turns)

    @property
    def has_turns(self) -> bool:
        """Whether a type is seen by its turns, so that `turn_ids` are needed."""
        return any(turns is not None for turns in self.turns)

    @property
    def default(self) -> SemanticType:
        """Type of a message that has none."""
        return SemanticType.parse(self.default_type)

    @property
    def generated(self) -> SemanticType:
        """Type of generated tokens that no rule types."""
        return self.default if self.generated_type is None else SemanticType.parse(self.generated_type)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values that JSON and YAML can hold."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "rules": self.rules.to_list() if isinstance(self.rules, RuleSet) else self.rules}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build the configuration from a mapping; an unknown key is an error with a suggestion.

        The key ``preset`` names numbers of `hsa_factory.presets`; options beside it win.

        Raises:
            ValueError: If a key or a value is not allowed, or `rules` and its former name `labels` differ.
        """
        if isinstance(values, dict):
            values = with_preset(values)
        if not isinstance(values, dict) or "labels" not in values:
            return super().from_dict(values)
        values = cls._read_none(values)
        rules = agreed_rules(parse_rules("labels", values["labels"]), values.get("rules"))
        rest = {name: value for name, value in values.items() if name != "labels"}
        return super().from_dict({**rest, "rules": rules})

    def attention_rules(self) -> dict[str, Any]:
        """Return what decides the attention's result, so that two configurations can be compared by it."""
        return {
            "decays": self.decays,
            "windows": self.windows,
            "turns": self.turns,
            "hide": self.hide,
            "layers": self.layers,
        }

    def attention_options(self) -> dict[str, Any]:
        """Return the options behind `attention_rules` as plain values by name, to be shown."""
        kinds = ("_decay", "_window", "_turns")
        return {
            name: value for name, value in self.to_dict().items() if name.endswith(kinds) or name in ("hide", "layers")
        }

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> Path:
        """Write ``hsa_config.json`` into a directory (made if missing) and return its path.

        The file is replaced as a whole, so that a killed process leaves no half-written file.
        """
        path = Path(save_directory) / CONFIG_NAME
        values = {"format_version": FORMAT_VERSION, **self.to_dict()}
        write_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        return path

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str]) -> "HSAConfig":
        """Read ``hsa_config.json`` from a checkpoint's or adapter's directory.

        Raises:
            FileNotFoundError: If the directory has no such file.
            ValueError: If the file is not valid, or of a later version of this package; the message names it.
        """
        path = Path(directory) / CONFIG_NAME
        if not path.is_file():
            raise FileNotFoundError(f"No {CONFIG_NAME} in {str(directory)!r}: it was not saved from a model with HSA.")
        try:
            values = strict_json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is not valid JSON: {error}. Copy it anew from where the model was trained, or write it with "
                "HSAConfig(…).save_pretrained(directory)."
            ) from None
        try:
            return cls.from_dict(_without_version(values))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _without_version(values: Any) -> Any:
    """Return what a file holds besides its version.

    Raises:
        ValueError: If a later version of this package wrote it, or the version is none.
    """
    if not isinstance(values, dict) or "format_version" not in values:
        return values
    version = values["format_version"]
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"format_version = {version!r} is not allowed: a whole number ≥ 1.")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"it was written by a later version of hsa-factory (format_version {version}; this one reads up to "
            f"{FORMAT_VERSION}). Upgrade it: pip install -U hsa-factory"
        )
    return {name: value for name, value in values.items() if name != "format_version"}


@dataclass(frozen=True)
class FeedbackConfig(_Config):
    """Which labels are trained around the feedback marker.

    Args:
        token: The marker, one special token of the tokenizer (added when missing).
        occurrence: Which marker counts when a sample has several: ``first``, ``last``, or ``every``: after the first,
            but no assistant turn that the next message answers with another marker.
        missing: What happens to a sample without the marker: ``train`` all of it, ``drop`` it, or ``error``.
        empty: What happens to a sample in which nothing is left to train: ``drop`` or ``error``.
        scope: Role of the messages in which a marker counts: ``user``, ``observation``, ``assistant``, ``function`` or
            ``system``; None: any.
        train: ``after``: what stands after the marker. ``recovery``: every assistant turn but those whose next
            message brings a marker.

    Raises:
        ValueError: If a value is not allowed, or two exclude each other.
    """

    token: str = "<|feedback|>"
    occurrence: str = "first"
    missing: str = "train"
    empty: str = "drop"
    scope: str | None = None
    train: str = "after"

    def __post_init__(self) -> None:
        if not isinstance(self.token, str) or not self.token or any(char.isspace() for char in self.token):
            self._fail("token", "a non-empty text without spaces")
        for name, allowed in (
            ("occurrence", ("first", "last", "every")),
            ("missing", ("train", "drop", "error")),
            ("empty", ("drop", "error")),
            ("train", ("after", "recovery")),
        ):
            if getattr(self, name) not in allowed:
                self._fail(name, f"one of {', '.join(allowed)}")

        if self.scope is not None and self.scope not in ROLES:
            self._fail("scope", f"one of {', '.join(ROLES)}, or none for any role")
        if self.train == "recovery":
            if self.occurrence == "last":
                self._fail("occurrence", "with train: recovery every marker counts; leave occurrence out")
            if self.scope not in (None, "user", "observation"):
                self._fail(
                    "scope", "with train: recovery it must be user or observation, the roles that answer an assistant"
                )
