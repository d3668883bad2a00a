"""What a model that shares its rows among ranks cannot do: refused by name, before a step or in the call that asks for it."""

import inspect
from typing import Any

from transformers import PreTrainedModel

from ..text_model import TextModel, has_stateful_layers


def check_model(parts: TextModel) -> None:
    """Refuse a model whose rows cannot be cut.

    Raises:
        ValueError: If it has layers without softmax attention, or computes its loss without transformers' `loss_function`.
    """
    base = parts.base
    name = type(base).__name__
    if len(parts.attention_layers) < parts.num_layers or has_stateful_layers(parts.text.config):
        raise ValueError(
            f"{name} has layers without softmax attention, whose state would have to be passed on from rank to rank: "
            "context_parallel is refused for it."
        )
    if base is parts.entry:
        return
    check_liger(base)
    if base.get_output_embeddings() is None or "loss_function" not in _names(type(base)):
        raise ValueError(
            f"{name} does not compute the loss of each token by transformers' `loss_function`, which context_parallel adds up "
            "over ranks: it is refused for this model."
        )


def check_liger(base: PreTrainedModel) -> None:
    """Refuse a model whose forward Liger has replaced.

    Raises:
        ValueError: Naming the options.
    """
    name = type(base).__name__
    for forward in (type(base).forward, vars(base).get("forward")):
        if getattr(forward, "__module__", "").startswith("liger_kernel"):
            raise ValueError(
                f"{name}: Liger's fused loss takes the labels of a whole row, of which a rank has a slice: switch Liger "
                "kernels off (`use_liger_kernel`, `enable_liger_kernel`) with context_parallel."
            )


def check_router(module: PreTrainedModel, kwargs: dict[str, Any]) -> None:
    """Refuse a forward that adds the loss of a router.

    Args:
        module: The model without its head.
        kwargs: The arguments of its forward.

    Raises:
        ValueError: Naming the option.
    """
    wanted = kwargs.get("output_router_logits")
    if getattr(module.config.get_text_config(), "output_router_logits", False) if wanted is None else wanted:
        raise ValueError(
            f"{type(module).__name__}: the loss of its router (`output_router_logits`, LLaMA-Factory's `moe_aux_loss_coef`) is no sum over "
            "tokens, so that context_parallel cannot add it up over ranks: switch it off."
        )


def _names(model_class: type) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(model_class.forward), "__code__", None)  # type: ignore[attr-defined]
    return () if code is None else code.co_names
