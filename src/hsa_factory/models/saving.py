"""What lies beside whatever is saved of a model with HSA: ``hsa_config.json``, and a word on HSA for others."""

import functools
import os
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .forward_pass import HSAState
from .instance_method import put_back
from .model_card import noted, write_card_section


_NAME = "save_pretrained"


class SaveWithConfig:
    """Somebody's `save_pretrained` that also says which rules belong to the weights, as long as HSA is on.

    ``hsa_config.json`` holds them; config.json and the model card tell people, and programs that do not know HSA.

    Args:
        owner: A model, or the configuration of an adapter, which is saved with each adapter.
        state: HSA's.
    """

    def __init__(self, owner: Any, state: HSAState) -> None:
        self.owner, self.state = owner, state
        self.replaced = vars(owner).get(_NAME)  # an attribute of the instance, put there by somebody else

    @property
    def former(self) -> Any:
        """What it was before."""
        if self.replaced is not None:
            return self.replaced
        return functools.partial(type(self.owner).save_pretrained, self.owner)

    def __call__(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        with noted(getattr(self.owner, "config", None)) if self.state.is_on else nullcontext():
            result = self.former(save_directory, *args, **kwargs)
        if self.state.is_on and kwargs.get("is_main_process", True):
            self.state.config.save_pretrained(save_directory)
            write_card_section(save_directory, self.state.config)
        return result


def install_saving(chain: Iterable[nn.Module], state: HSAState) -> None:
    """Let a model, and the adapters on it, save HSA's configuration. Harmless to repeat.

    PEFT tells nobody when it wraps a model, but leaves its adapters' configurations on it; they are looked for again
    before each forward and before a state dict is made, which saving begins with. Those of prompts (prompt and prefix
    tuning) are on the wrapper only: they are found where HSA is enabled after wrapping.

    Args:
        chain: A model, what it wraps, and so on down to the transformers model.
        state: HSA's.
    """
    for module in chain:
        _install_for_adapters(state, module)
        if isinstance(module, PreTrainedModel):
            _install(module, state)


def install_before_forward(state: HSAState, model: nn.Module, args: Any) -> None:
    """Do so for the adapters that are on a model by now, as a forward hook."""
    _install_for_adapters(state, model)


def install_before_state_dict(state: HSAState, model: nn.Module, prefix: str, keep_vars: bool) -> None:
    """Do so for the adapters that are on a model by now, as a state dict hook."""
    _install_for_adapters(state, model)


def remove_saving(chain: Iterable[nn.Module]) -> None:
    """Put every former `save_pretrained` back. One that somebody has wrapped since stays, and writes nothing more."""
    for module in chain:
        for owner in (module, *_adapters(module)):
            put_back(owner, _NAME, SaveWithConfig)


def _install_for_adapters(state: HSAState, module: nn.Module) -> None:
    if state.is_on:
        for adapter in _adapters(module):
            _install(adapter, state)


def _adapters(module: nn.Module) -> list[Any]:
    """Return the configurations of the adapters that a module knows of."""
    found = vars(module).get("peft_config") or getattr(module, "_peft_config", None) or {}
    return [*found.values()] if isinstance(found, dict) else []


def _install(owner: Any, state: HSAState) -> None:
    installed = vars(owner).get(_NAME)
    if not isinstance(installed, SaveWithConfig):
        setattr(owner, _NAME, SaveWithConfig(owner, state))
    else:
        installed.state = state
