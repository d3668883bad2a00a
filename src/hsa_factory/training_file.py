"""A training file: a LLaMA-Factory YAML (or JSON) with two blocks more, `hsa` and `feedback`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .config import FeedbackConfig, HSAConfig


BLOCKS = ("hsa", "feedback")


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
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be parsed, or a block has an unknown key or a value that is not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Training file {str(path)!r} does not exist.")

    try:
        text = path.read_text(encoding="utf-8")
        file_args = OmegaConf.create(json.loads(text) if path.suffix == ".json" else text or "{}")
        cli_args = OmegaConf.from_cli(list(overrides))
        for block in BLOCKS:  # `hsa: true` in the file and hsa.noise_window=20 behind it: a mapping wins over true
            if (
                block in cli_args
                and OmegaConf.is_dict(cli_args[block])
                and not OmegaConf.is_dict(file_args.get(block))
            ):
                file_args[block] = {}
        args = OmegaConf.to_container(OmegaConf.merge(file_args, cli_args), resolve=True)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise ValueError(f"{path}: cannot be parsed: {error}") from None
    except Exception as error:  # the YAML library's own errors share no base with these
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(args, dict):
        raise ValueError(f"{path}: expected a mapping of options.")

    hsa, feedback = args.pop("hsa", None), args.pop("feedback", None)
    blocks = _read_block("hsa", hsa, HSAConfig), _read_block("feedback", feedback, FeedbackConfig)
    return TrainingFile(args, *blocks, hsa_off=hsa is False)


def _read_block(name: str, block: Any, config_class: type) -> Any:
    if block is None or block is False:
        return None
    if block is True:
        return True if config_class is HSAConfig else config_class()
    if not isinstance(block, dict):
        raise ValueError(f"{name}: expected true, false or a mapping of options, got {block!r}.")
    try:
        return config_class.from_dict(block)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
