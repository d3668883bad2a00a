"""`enable_hsa` and `disable_hsa`: HSA on any transformers model through its public extension points."""

import copy
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from transformers import PreTrainedConfig

from ..attention.api import check_backend
from ..config import CONFIG_NAME, HSAConfig
from .attention_interface import IMPLEMENTATION, register_interface
from .context_parallel import ContextGroup, check_model, cut_to_slice, install_loss, remove_loss
from .forward_hooks import (
    after_forward,
    after_outer_forward,
    before_forward,
    before_outer_forward,
    before_text_forward,
)
from .forward_pass import HSAState
from .generation.generate import install_generate, remove_generate
from .model_card import mentions_hsa
from .saving import install_before_forward, install_before_state_dict, install_saving, remove_saving
from .text_model import TextModel, find_text_model, has_stateful_layers, sliding_windows, unwrap, wrapping


logger = logging.getLogger(__name__)


def enable_hsa(
    model: nn.Module, config: HSAConfig | None = None, context_parallel: "dist.ProcessGroup | None" = None
) -> nn.Module:
    """Switch HSA on for a transformers model, PEFT-wrapped or not. Only the text model's attention changes.

    From then on `model(input_ids=…, attention_mask=…, semantic_ids=…)` attends with HSA; in training a forward
    without `semantic_ids` is an error, in inference it is plain attention.
    `model.generate(input_ids, semantic_ids=…)` generates with an `HSACache`. `save_pretrained` of the model, and of adapters
    that are put on it before or after, also writes ``hsa_config.json`` (of prompt and prefix tuning where HSA is enabled
    after wrapping). Enabling again replaces the configuration. The model gets a copy of its transformers configuration,
    which it may share with other models.

    Args:
        model: The model.
        config: The rules; None: those saved beside the checkpoint the model was loaded from, else the defaults.
        context_parallel: The process group of the ranks that share the tokens of every row, for training and evaluation:
            each calls the model with the same whole rows, runs it on its slice, and returns the logits of that and the loss
            of all. None: this process has whole rows.

    Returns:
        The same model.

    Raises:
        TypeError: If it is not a transformers model.
        ValueError: If HSA cannot reach this model's attention, or the configuration asks for what is not there.
    """
    if config is None:
        config = saved_config(model) or HSAConfig()
    if not isinstance(config, HSAConfig):
        raise TypeError(f"enable_hsa needs an HSAConfig, got {type(config).__name__}.")

    check_backend(config.backend)
    parts = find_text_model(model)
    _check_layers(parts, config)
    context = None if context_parallel is None else ContextGroup(context_parallel)
    if context is not None:
        check_model(parts)
    register_interface()

    state = get_state(model)
    if state is None:
        state = _install(model, parts, config)
    state.config, state.context = config, context
    _install_on_base(parts, state)
    if context is not None:
        install_loss(parts.base, state)
    else:
        remove_loss(parts.base)
    install_saving(wrapping(model), state)

    used = len(parts.attention_layers if config.layers is None else config.layers)
    note = "" if used == parts.num_layers else f" (the other {parts.num_layers - used} stay as they are)"
    logger.info(f"HSA is on in {used} of {parts.num_layers} layers of {state.model_name}{note}.")
    return model


def disable_hsa(model: nn.Module) -> nn.Module:
    """Take HSA off again: hooks, attention implementation and `save_pretrained` become the stock ones.

    Args:
        model: The model; nothing happens if HSA is not on.

    Returns:
        The same model.
    """
    state = get_state(model)
    if state is None:
        return model

    parts = find_text_model(model)
    state.is_on = False
    remove_loss(parts.base)
    for module in {parts.entry, parts.base}:
        for name in ("hsa_handles", "hsa_outer_handles"):
            for handle in vars(module).pop(name, ()):
                handle.remove()
    parts.text.set_attn_implementation(state.former_implementation)
    for holder in (parts.entry, *parts.attention_layers.values()):
        vars(holder).pop("hsa_state", None)
    for module in {parts.entry, parts.base}:
        remove_generate(module)
    remove_saving([*wrapping(model), parts.entry])
    return model


def apply_hsa_patch(model: nn.Module) -> nn.Module:
    """Switch HSA on with the defaults: the former name of ``enable_hsa(model, HSAConfig())``."""
    return enable_hsa(model, HSAConfig())


def get_state(model: nn.Module) -> HSAState | None:
    """Return HSA's state on a model, or None if HSA is off."""
    return vars(unwrap(model).base_model).get("hsa_state")


def saved_config(model: nn.Module) -> HSAConfig | None:
    """Return the configuration saved beside the checkpoint a model was loaded from, or None.

    A PEFT model does not know the directory of its adapter: read that with ``HSAConfig.from_pretrained``.
    """
    place = getattr(unwrap(model).config, "_name_or_path", None)
    if place and os.path.isdir(place) and (Path(place) / CONFIG_NAME).is_file():
        config = HSAConfig.from_pretrained(place)
        logger.info(f"HSA configuration found in {place}.")
        return config

    if place and mentions_hsa(place):
        logger.warning(
            f"enable_hsa without a configuration: {place} was trained with HSA, but its {CONFIG_NAME} is missing, and the "
            "defaults are used. Copy the file from where the model was trained, or give enable_hsa the rules."
        )
    if hasattr(model, "peft_config"):
        logger.warning(
            "enable_hsa without a configuration on a PEFT model: the defaults are used. The adapter's own is read with "
            "enable_hsa(model, HSAConfig.from_pretrained(adapter_directory))."
        )
    return None


def _install(model: nn.Module, parts: TextModel, config: HSAConfig) -> HSAState:
    """Put HSA's state, hooks and attention on a model that has none."""
    _give_own_config(model)
    former = parts.text.config._attn_implementation
    if former == IMPLEMENTATION:  # built from the configuration of a model that has HSA
        former = parts.text.get_correct_attn_implementation(None)
    is_hybrid = len(parts.attention_layers) < parts.num_layers or has_stateful_layers(parts.text.config)
    windows = sliding_windows(parts.text.config, parts.attention_layers)
    state = HSAState(config, former, type(parts.base).__name__, windows, is_hybrid)
    parts.text.set_attn_implementation(IMPLEMENTATION)
    if parts.text.config._attn_implementation != IMPLEMENTATION:
        raise ValueError(f"{state.model_name} does not let its attention implementation be set.")

    for module in (parts.entry, *parts.attention_layers.values()):
        vars(module)["hsa_state"] = state
    vars(parts.entry)["hsa_handles"] = [
        parts.entry.register_forward_pre_hook(partial(before_forward, state), with_kwargs=True),
        parts.entry.register_forward_hook(partial(after_forward, state), with_kwargs=True, always_call=True),
        parts.text.register_forward_pre_hook(before_text_forward, with_kwargs=True),
        parts.text.register_forward_pre_hook(cut_to_slice, with_kwargs=True),
    ]
    return state


def _install_on_base(parts: TextModel, state: HSAState) -> None:
    """Put what belongs to the whole model on it; HSA may have been enabled on its text model alone before."""
    base = parts.base
    if "hsa_outer_handles" in vars(base):
        return
    vars(base)["hsa_outer_handles"] = handles = [
        base.register_forward_pre_hook(partial(install_before_forward, state)),
        base.register_state_dict_pre_hook(partial(install_before_state_dict, state)),
    ]
    if base is not parts.entry:
        handles.append(base.register_forward_pre_hook(partial(before_outer_forward, state), with_kwargs=True))
        handles.append(
            base.register_forward_hook(partial(after_outer_forward, state), with_kwargs=True, always_call=True)
        )
    install_generate(base, state)


def _give_own_config(model: nn.Module) -> None:
    """Copy a model's configuration: it chooses the attention, and other models may have been built from it too."""
    copies: dict[int, Any] = {}
    copy.deepcopy(unwrap(model).config, copies)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, PreTrainedConfig) and id(value) in copies:
                setattr(module, name, copies[id(value)])


def _check_layers(parts: TextModel, config: HSAConfig) -> None:
    wanted = config.layers or ()
    unknown = sorted(set(wanted) - set(parts.attention_layers))
    if unknown:
        raise ValueError(
            f"HSAConfig.layers = {list(wanted)}: {type(parts.base).__name__} has softmax attention in layers "
            f"{sorted(parts.attention_layers)}, not in {unknown}."
        )
