"""A training file: a LLaMA-Factory YAML (or JSON) with two blocks more, `hsa` and `feedback`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from . import strict_json
from .config import FeedbackConfig, HSAConfig
from .user_errors import UserError


BLOCKS = ("hsa", "feedback")
Config = TypeVar("Config", HSAConfig, FeedbackConfig)


@dataclass(frozen=True)
class TrainingFile:
    """A parsed training file.

    Attributes:
        args: LLaMA-Factory's own arguments.
        hsa: The rules; True for ``hsa: true``; None if the block is missing or off.
        feedback: None if the block is missing or off.
        hsa_off: Whether the file says ``hsa: false``: then a checkpoint's own rules are not used either.
    """

    args: dict[str, Any]
    hsa: HSAConfig | bool | None
    feedback: FeedbackConfig | None
    hsa_off: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is a plain LLaMA-Factory file."""
        return self.hsa is None and self.feedback is None


def is_training_file(argument: str) -> bool:
    """Whether a command line argument names a file of arguments, by LLaMA-Factory's own rule."""
    return argument.endswith((".yaml", ".yml", ".json"))


def read_training_file(path: str | Path, overrides: Sequence[str] = ()) -> TrainingFile:
    """Read a training file.

    Args:
        path: YAML or JSON.
        overrides: ``key=value`` arguments, also into the blocks (``hsa.noise_window=20``, ``feedback=false``).

    Raises:
        UserError: If there is no such file, it cannot be parsed, or a block has an unknown key or a value that is not
            allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"Training file {str(path)!r} does not exist.")

    args = _parse(path, overrides)
    hsa, feedback = args.pop("hsa", None), args.pop("feedback", None)
    return TrainingFile(
        args,
        hsa=True if hsa is True else _read_block("hsa", hsa, HSAConfig),
        feedback=_read_block("feedback", feedback, FeedbackConfig),
        hsa_off=hsa is False,
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
