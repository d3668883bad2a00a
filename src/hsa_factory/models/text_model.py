"""What of a transformers model HSA can reach: its text model, its softmax attention layers, or why it cannot."""

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


# Layers that carry a state from token to token, as transformers' configurations call them.
_STATEFUL_LAYERS = frozenset({"linear_attention", "mamba", "conv", "hybrid", "hybrid_sliding", "recurrent"})
SLIDING_LAYERS = frozenset({"sliding_attention", "hybrid_sliding"})
_KNOWN_LAYERS = _STATEFUL_LAYERS | SLIDING_LAYERS | {"full_attention", "attention"}


@dataclass(frozen=True)
class TextModel:
    """The parts of a model that HSA works on.

    Attributes:
        base: The model below any PEFT, value head or data-parallel wrapper.
        entry: The module that `base` calls with the 2-D mask and the keywords; HSA's hooks sit here.
        text: The module whose configuration chooses the attention implementation of the text layers.
        attention_layers: The softmax attention modules by layer index.
        num_layers: All decoder layers, linear attention ones included.
    """

    base: PreTrainedModel
    entry: PreTrainedModel
    text: PreTrainedModel
    attention_layers: dict[int, nn.Module]
    num_layers: int


def unwrap(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model below data-parallel, compiled, PEFT and value head wrappers.

    Raises:
        TypeError: If there is none.
    """
    *_, base = wrapping(model)
    return base


def wrapping(model: nn.Module) -> Iterator[Any]:
    """Yield a model, what it wraps, and so on down to the transformers model.

    Raises:
        TypeError: If there is none.
    """
    inner: Any = model
    yield inner
    while not isinstance(inner, PreTrainedModel):
        if isinstance(getattr(inner, "_orig_mod", None), nn.Module):  # torch.compile
            inner = inner._orig_mod
        elif hasattr(inner, "get_base_model"):  # PEFT
            inner = inner.get_base_model()
        elif isinstance(getattr(inner, "module", None), nn.Module):  # DistributedDataParallel
            inner = inner.module
        elif isinstance(getattr(inner, "pretrained_model", None), nn.Module):  # TRL's value head
            inner = inner.pretrained_model
        else:
            raise TypeError(f"enable_hsa needs a transformers model, got {type(model).__name__}.")
        yield inner


def find_text_model(model: nn.Module) -> TextModel:
    """Find the text model's softmax attention, or refuse the model by name.

    Raises:
        TypeError: If it is not a transformers model.
        ValueError: If HSA cannot reach its attention; the message says why.
    """
    base = unwrap(model)
    name = type(base).__name__
    if getattr(base.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder model; HSA supports decoder-only models.")

    text_config = base.config.get_text_config(decoder=True)
    modules: Iterable[Any] = base.modules()
    layers: dict[int, nn.Module] = {
        module.layer_idx: module
        for module in modules
        if isinstance(getattr(module, "layer_idx", None), int)
        and type(getattr(module, "config", None)) is type(text_config)
        and _calls_attention_interface(module)
        and getattr(module, "is_causal", True)
    }
    if not layers:
        raise ValueError(
            f"{name} does not call transformers' attention interface, so HSA cannot reach its attention. "
            "Models with code of their own (trust_remote_code) need a port to `AttentionInterface`."
        )

    for kind in getattr(text_config, "layer_types", None) or ():
        is_attention = "attention" in kind or kind.endswith("_sparse")  # others, such as "moe", have none
        if (
            is_attention and kind not in _KNOWN_LAYERS
        ):  # chunked, of few keys that an indexer chooses, or what may come
            raise ValueError(f"{name} uses {kind.replace('_', ' ')}, which HSA does not support.")

    for index, module in layers.items():
        if not _accepts_keywords(module):
            raise ValueError(
                f"{name} does not hand keywords on to its attention (layer {index}, {type(module).__name__}.forward "
                "has no **kwargs), so HSA cannot reach it."
            )

    text = _owner(base, next(iter(layers.values())))
    entry: Any = base.base_model
    for module in {entry, text}:
        if not _accepts_keywords(module):
            raise ValueError(
                f"{name} does not hand keywords on to its layers ({type(module).__name__}.forward has no **kwargs), "
                "so HSA cannot reach its attention."
            )

    if entry is base and _is_adapted(model, base):
        raise ValueError(
            f"PEFT calls {name} past its hooks, and it has no base model of its own below its head, so that HSA cannot read "
            "semantic_ids there. Train it in full (`finetuning_type: full`), merge the adapter first "
            "(model.merge_and_unload()), or give PEFT no task_type."
        )

    num_layers = getattr(text_config, "num_hidden_layers", len(layers))
    return TextModel(base, entry, text, layers, num_layers)


def _is_adapted(model: nn.Module, base: PreTrainedModel) -> bool:
    """Whether adapters of PEFT (LoRA and its like) lie around a model and call its `forward`, not the model.

    Only `PeftModel` itself, which has no task type, calls the model.
    """
    outer = [module for module in wrapping(model) if module is not base and type(module).__name__ != "PeftModel"]
    tuners = [getattr(module, "base_model", None) for module in outer]
    return any(tuner is not base and getattr(tuner, "model", None) is base for tuner in tuners)


def has_stateful_layers(config: PreTrainedConfig) -> bool:
    """Whether a configuration is that of a model with linear attention, convolutions or state spaces.

    Such layers (those of Qwen3.5, Qwen3-Next, LFM2, Granite 4, Jamba, Falcon-H1, …) know no documents: their state runs on
    from one sample of a packed row into the next.
    """
    text_config = config.get_text_config(decoder=True)
    kinds = (getattr(text_config, name, None) or () for name in ("layer_types", "layers_block_type"))
    return any(not _STATEFUL_LAYERS.isdisjoint(found) for found in kinds)


def sliding_windows(text_config: PreTrainedConfig, layers: Iterable[int]) -> dict[int, int | None]:
    """Return the sliding window that a model's configuration gives each softmax attention layer; None: it has none."""
    window = getattr(text_config, "sliding_window", None)
    types = getattr(text_config, "layer_types", None)
    return {index: window if types is None or types[index] in SLIDING_LAYERS else None for index in layers}


def _owner(base: PreTrainedModel, attention: nn.Module) -> PreTrainedModel:
    """Return the innermost transformers model that holds an attention module: the text model."""
    owners = [
        module
        for module in base.modules()
        if isinstance(module, PreTrainedModel) and any(inner is attention for inner in module.modules())
    ]
    return owners[-1]  # modules() lists outer modules first


def _calls_attention_interface(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _accepts_keywords(module: nn.Module) -> bool:
    parameters: dict[str, Any] = dict(inspect.signature(inspect.unwrap(type(module).forward)).parameters)
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
