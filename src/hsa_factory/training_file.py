"""A training file: a LLaMA-Factory YAML (or JSON) with three blocks more, `hsa`, `feedback` and `loss_weights`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from . import strict_json
from .config import FeedbackConfig, HSAConfig
from .loss_weights import LossWeightsConfig
from .presets import CONTEXT_PARALLEL_KEY as _RANKS
from .user_errors import UserError


BLOCKS = ("hsa", "feedback", "loss_weights")
SAVED = "saved"
"""In the place of a configuration: the one saved with the checkpoint; no HSA if it has none."""

Config = TypeVar("Config", HSAConfig, FeedbackConfig, LossWeightsConfig)


@dataclass(frozen=True)
class TrainingFile:
    """A parsed training file.

    Attributes:
        args: LLaMA-Factory's own arguments.
        hsa: The rules; True for ``hsa: true``; None if the block is missing or off.
        feedback: None if the block is missing or off.
        hsa_off: Whether the file says ``hsa: false``: then a checkpoint's own rules are not used either.
        loss_weights: None if the block is missing or off.
        written: What stands in the file or behind it, of LLaMA-Factory's options that YAML reads as a number or as true or
            false: ``no``, ``on``, ``007``. Some of them may take text.
        context_parallel: How many processes share the tokens of each row. It stands in the block `hsa`, but is no rule: it says
            how a run is computed, and is saved with no checkpoint.
    """

    args: dict[str, Any]
    hsa: HSAConfig | bool | None
    feedback: FeedbackConfig | None
    hsa_off: bool = False
    loss_weights: LossWeightsConfig | None = None
    written: dict[str, str] = field(default_factory=dict)
    context_parallel: int = 1

    @property
    def is_plain(self) -> bool:
        """Whether it is a plain LLaMA-Factory file."""
        return self.hsa is None and self.feedback is None and self.loss_weights is None

    @property
    def asked_for(self) -> HSAConfig | bool | str:
        """What the file asks for: rules, True, False for ``hsa: false``, and `SAVED` if it does not say."""
        if self.hsa is not None:
            return self.hsa
        return False if self.hsa_off else SAVED


def is_training_file(argument: str) -> bool:
    """Whether a command line argument names a file of arguments, by LLaMA-Factory's own rule."""
    return argument.endswith((".yaml", ".yml", ".json"))


def read_training_file(path: str | Path, overrides: Sequence[str] = ()) -> TrainingFile:
    """Read a training file.

    Args:
        path: YAML or JSON.
        overrides: ``key=value`` arguments, also into the blocks (``hsa.noise_window=20``, ``feedback=false``).

    Raises:
        UserError: If there is no such file, it cannot be parsed, a block has an unknown key or a value that is not
            allowed, or a block or an option in one is written without a value.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"Training file {str(path)!r} does not exist.")

    args = _parse(path, overrides)
    _refuse_empty(path, overrides)
    hsa, feedback, loss_weights = (_read_none(args.pop(block, None)) for block in BLOCKS)
    hsa, context_parallel = split_ranks(hsa)
    return TrainingFile(
        args,
        hsa=True if hsa is True else _read_block("hsa", hsa, HSAConfig),
        feedback=_read_block("feedback", feedback, FeedbackConfig),
        hsa_off=hsa is False,
        loss_weights=_read_block("loss_weights", loss_weights, LossWeightsConfig),
        written={name: text for name, text in _written(path, overrides).items() if _is_no_text(args.get(name))},
        context_parallel=context_parallel,
    )


def _parse(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return what a file and the arguments behind it say, all references resolved."""
    try:
        if path.suffix == ".json":
            file_args = OmegaConf.create(strict_json.loads(path.read_bytes()))
        else:
            file_args = OmegaConf.load(path)
        if not isinstance(file_args, DictConfig):
            raise UserError(f"{path}: expected a mapping of options.")

        cli_args = OmegaConf.from_cli(list(overrides))
        for block in BLOCKS:  # `hsa: true` in the file and hsa.noise_window=20 behind it: a mapping wins over true
            if (
                block in cli_args
                and OmegaConf.is_dict(cli_args[block])
                and not OmegaConf.is_dict(file_args.get(block))
            ):
                file_args[block] = {}
        args = OmegaConf.to_container(OmegaConf.merge(file_args, cli_args), resolve=True)
    except UserError:
        raise
    except YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    except (OmegaConfBaseException, OSError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be parsed: {error}") from None
    if not isinstance(args, dict):
        raise UserError(f"{path}: expected a mapping of options.")
    return {str(name): value for name, value in args.items()}


def _written(path: Path, overrides: Sequence[str]) -> dict[str, str]:
    """Return the options whose value is one word without quotes, as it was written. JSON says itself what is text."""
    words = {
        str(name.value): str(value.value)
        for name, value in _entries(path)
        if isinstance(value, yaml.ScalarNode) and value.style is None
    }
    for override in overrides:
        name, _, text = override.partition("=")
        words[name] = text.strip()
    return {name: text for name, text in words.items() if "${" not in text}


def _entries(path: Path) -> Sequence[tuple[yaml.Node, yaml.Node]]:
    """Return names and values of a YAML file as they are written; none of a JSON file."""
    document = None if path.suffix == ".json" else yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    return getattr(document, "value", None) or ()


def _is_no_text(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def _refuse_empty(path: Path, overrides: Sequence[str]) -> None:
    """Refuse what is written without a value: it would be read as none, which nobody has asked for.

    Raises:
        UserError: Naming the block or option.
    """
    given = set()
    for override in overrides:
        key, _, value = override.partition("=")
        option = tuple(part for part in re.split(r"[.\[\]]+", key) if part)
        given.add(option)
        if option and option[0].lstrip("-") in BLOCKS and option[0].startswith("-"):
            raise UserError(f"{override}: write options without dashes, as in {'.'.join(option).lstrip('-')}=VALUE.")
        if option and option[0] in BLOCKS and not value.strip():
            raise UserError(f"{key} has no value on the command line. {_how_to_say_none(option)}")

    for option in _written_empty(path):
        if not any(other[: len(option)] == option or option[: len(other)] == other for other in given):
            below = "" if option[1:] else " What belongs to it must be indented."
            raise UserError(f"{path}: `{'.'.join(option)}:` has no value.{below} {_how_to_say_none(option)}")


def _how_to_say_none(option: tuple[str, ...]) -> str:
    if option[1:]:
        return (
            f"Write one, or leave {'.'.join(option)} out for its default; where an option may be none, write `none`."
        )
    return (
        f"Write `{option[0]}: true` for the defaults, `{option[0]}: false` to switch it off, or a mapping of options."
    )


def _written_empty(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield the blocks, and what is in them, behind whose colon nothing is written. A null that is written is none."""
    for name, block in _entries(path):
        if name.value in BLOCKS:
            yield from _empty_below((name.value,), block)


def _empty_below(place: tuple[str, ...], node: yaml.Node) -> Iterator[tuple[str, ...]]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _empty_below((*place, str(name.value)), value)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _empty_below((*place, str(number)), value)
    elif node.value == "" and node.tag.endswith(":null"):
        yield place


def _read_none(block: Any) -> Any:
    return False if isinstance(block, str) and block.lower() == "none" else block


def split_ranks(hsa: Any) -> tuple[Any, int]:
    """Take `context_parallel` out of the block `hsa`.

    Args:
        hsa: The block.

    Returns:
        The rules, ``true`` where the block says nothing else; and how many processes share a row.

    Raises:
        UserError: If that is no whole number from 1 on.
    """
    if not isinstance(hsa, dict) or _RANKS not in hsa:
        return hsa, 1
    rules = {name: value for name, value in hsa.items() if name != _RANKS}
    ranks = hsa[_RANKS]
    if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
        raise UserError(
            f"hsa.{_RANKS} = {ranks!r} is not allowed: a whole number ≥ 1, how many processes share the tokens of each row."
        )
    return rules or True, ranks


def _read_block(name: str, block: Any, config_class: type[Config]) -> Config | None:
    if block is None or block is False:
        return None
    if block is True:
        return config_class()
    if not isinstance(block, dict):
        raise UserError(f"{name}: expected true, false or a mapping of options, got {block!r}.")
    try:
        return config_class.from_dict(block)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None
