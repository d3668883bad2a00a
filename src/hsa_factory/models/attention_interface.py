"""The attention and mask functions that transformers' registries call under the name "hsa"."""

import sys
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..attention import AttentionPlan, run_attention


if TYPE_CHECKING:
    from .forward_hooks import HSAHook


IMPLEMENTATION = "hsa"
PLAN_KEYWORD = "hsa_plan"

# Keywords with which some models change the attention in ways that HSA does not know: never to be dropped silently.
_UNSUPPORTED_KEYWORDS = ("position_bias", "attention_bias", "alibi", "head_mask", "layer_head_mask")


class _ActiveForwards(threading.local):
    """The hooks of the forward passes under way in this thread, the innermost last."""

    def __init__(self) -> None:
        self.hooks: list[HSAHook] = []


active_forwards = _ActiveForwards()


def register_interface() -> None:
    """Make "hsa" known to transformers' public registries. Harmless to repeat; models are not changed by it."""
    AttentionInterface.register(IMPLEMENTATION, hsa_attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, hsa_mask)


def hsa_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Build no mask while a plan is active: the plan holds causality, documents and padding.

    Without one (inference without `semantic_ids`) the model's former implementation builds its mask.

    Raises:
        ValueError: If the model asks for more than a causal or sliding mask, such as image tokens that see ahead.
    """
    hook = active_forwards.hooks[-1] if active_forwards.hooks else None
    if hook is None or hook.forward_pass.plan is None:
        former = hook.former_implementation if hook is not None else "sdpa"
        return ALL_MASK_ATTENTION_FUNCTIONS[former](*args, **kwargs)

    if kwargs.get("use_vmap"):
        raise ValueError(
            f"{hook.model_name} lays another mask over the causal one (for example image tokens that see ahead of "
            "themselves), which HSA cannot honour."
        )
    hook.forward_pass.mask_windows.add(kwargs.get("local_size"))
    return None


def hsa_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend with the forward's plan; without one, exactly as the model did before `enable_hsa`.

    Legend: B batch, H query heads, Hkv key/value heads, Q query length, L key length, D head size.

    Args:
        module: The attention layer; `enable_hsa` has left its hook on it.
        query: (B, H, Q, D).
        key: (B, Hkv, L, D).
        value: (B, Hkv, L, D).
        attention_mask: Unused with a plan, which must then have been the only source of the mask.
        dropout: Probability with which attention weights are dropped.
        scaling: Factor of q·k.
        **kwargs: `hsa_plan`, and what the model adds: `sliding_window`, `softcap`, `s_aux` (attention sinks), …

    Returns:
        The output (B, Q, H, D), and the attention weights (B, H, Q, L) or None.

    Raises:
        ValueError: If the plan is missing in training, was built for other lengths, or the model asks for
            something that HSA cannot honour.
    """
    hook: HSAHook | None = getattr(module, "hsa_hook", None)
    if hook is None:
        raise ValueError(
            f'{type(module).__name__} has attn_implementation="hsa" without HSA: call enable_hsa(model) instead of '
            "naming the implementation."
        )

    plan: AttentionPlan | None = kwargs.pop(PLAN_KEYWORD, None)
    if plan is None:
        if hook.forward_pass.plan is not None or (module.training and torch.is_grad_enabled()):
            raise ValueError(
                f"{hook.model_name} did not hand HSA's plan on to {type(module).__name__} (layer {module.layer_idx}): "
                "its forward was bypassed or drops keywords, so HSA cannot be used with it."
            )
        former = _former_attention(module, hook.former_implementation)
        if hook.former_implementation == "eager" and attention_mask is not None and attention_mask.dtype == torch.bool:
            # generate() with a static cache makes the mask outside the forward, and so in the form for sdpa
            lowest = torch.finfo(query.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, lowest)
        return former(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)

    if attention_mask is not None:
        raise ValueError(
            f"{hook.model_name} made its own attention mask although HSA was active; pass the 2-D attention_mask."
        )
    for name in _UNSUPPORTED_KEYWORDS:
        if kwargs.get(name) is not None:
            raise ValueError(f"{hook.model_name} gives its attention {name!r}, which HSA cannot honour.")

    plan.calls.add(module.layer_idx)
    sliding_window = kwargs.get("sliding_window")
    hook.forward_pass.layer_windows.add(sliding_window)
    if hook.forward_pass.layer_plans is not None:  # with an HSACache
        plan = hook.forward_pass.layer_plans[module.layer_idx]
        if sliding_window != hook.windows[module.layer_idx]:
            raise ValueError(
                f"{hook.model_name} calls layer {module.layer_idx} with a sliding window of {sliding_window}, but its "
                f"configuration says {hook.windows[module.layer_idx]}: an HSACache cannot be used with it."
            )
    plan.check(query, key)
    output, weights = run_attention(
        query,
        key,
        value,
        plan,
        scale=scaling,
        sliding_window=sliding_window,
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
        dropout=dropout,
        neutral=plan.config.layers is not None and module.layer_idx not in plan.config.layers,
        output_attentions=bool(kwargs.get("output_attentions")),
    )
    return output.transpose(1, 2).contiguous(), weights


def _former_attention(module: nn.Module, implementation: str) -> Any:
    if implementation == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[implementation]
