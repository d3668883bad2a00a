"""The attention and mask functions that transformers' registries call under the name "hsa"."""

import sys
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..attention import run_attention
from .forward_pass import KEYWORD, ForwardPass, HSAState, find_pass, innermost


IMPLEMENTATION = "hsa"

# Keywords with which some models change the attention in ways that HSA does not know: never to be dropped silently.
_UNSUPPORTED_KEYWORDS = (
    *("position_bias", "attention_bias", "alibi", "head_mask", "layer_head_mask"),
    *("indices", "block_indices"),  # the few keys that an indexer has chosen
    "sinks",  # of each token, unlike `s_aux`
)


def register_interface() -> None:
    """Make "hsa" known to transformers' public registries. Harmless to repeat; models are not changed by it."""
    AttentionInterface.register(IMPLEMENTATION, hsa_attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, hsa_mask)


def hsa_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Build no mask in a forward pass with a plan, which holds causality, documents and padding.

    Without one (inference without `semantic_ids`) the model's former implementation builds its mask.

    Raises:
        ValueError: If the model asks for more than a causal or sliding mask, such as image tokens that see ahead.
    """
    forward = innermost()
    if forward is None or forward.plan is None:
        former = forward.state.former_implementation if forward is not None else "sdpa"
        return ALL_MASK_ATTENTION_FUNCTIONS[former](*args, **kwargs)

    if kwargs.get("use_vmap"):
        raise ValueError(
            f"{forward.state.model_name} lays another mask over the causal one (for example image tokens that see ahead of "
            "themselves), which HSA cannot honour."
        )
    forward.mask_windows.add(kwargs.get("local_size"))
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
    """Attend with the forward pass's plan; without one, exactly as the model did before `enable_hsa`.

    Legend: B batch, H query heads, Hkv key/value heads, Q query length, L key length, D head size.

    Args:
        module: The attention layer; `enable_hsa` has left its state on it.
        query: (B, H, Q, D).
        key: (B, Hkv, L, D).
        value: (B, Hkv, L, D).
        attention_mask: Unused with a plan, which must then have been the only source of the mask.
        dropout: Probability with which attention weights are dropped.
        scaling: Factor of q·k.
        **kwargs: `hsa_forward`, and what the model adds: `sliding_window`, `softcap`, `s_aux` (attention sinks), …

    Returns:
        The output (B, Q, H, D), and the attention weights (B, H, Q, L) or None.

    Raises:
        ValueError: If the plan is missing in training, was built for other lengths, or the model asks for
            something that HSA cannot honour.
    """
    state: HSAState | None = getattr(module, "hsa_state", None)
    if state is None:
        raise ValueError(
            f'{type(module).__name__} has attn_implementation="hsa" without HSA: call enable_hsa(model) instead of '
            "naming the implementation."
        )

    layer: Any = module.layer_idx
    forward: ForwardPass | None = kwargs.pop(KEYWORD, None)
    if forward is None:
        under_way = find_pass(state)
        has_plan = under_way is not None and under_way.plan is not None
        if has_plan or (module.training and torch.is_grad_enabled()):
            raise ValueError(
                f"{state.model_name} did not hand HSA's plan on to {type(module).__name__} (layer {layer}): "
                "its forward was bypassed or drops keywords, so HSA cannot be used with it."
            )
        former = _former_attention(module, state.former_implementation)
        if (
            state.former_implementation == "eager"
            and attention_mask is not None
            and attention_mask.dtype == torch.bool
        ):
            # generate() with a static cache makes the mask outside the forward, and so in the form for sdpa
            lowest = torch.finfo(query.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, lowest)
        return former(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)

    if attention_mask is not None:
        raise ValueError(
            f"{state.model_name} made its own attention mask although HSA was active; pass the 2-D attention_mask."
        )
    for name in _UNSUPPORTED_KEYWORDS:
        if kwargs.get(name) is not None:
            raise ValueError(f"{state.model_name} gives its attention {name!r}, which HSA cannot honour.")

    plan, rules = forward.reach(layer, kwargs.get("sliding_window"))
    options: dict[str, Any] = {
        "backend": forward.config.backend,
        "scale": scaling,
        "softcap": kwargs.get("softcap"),
        "sinks": kwargs.get("s_aux"),
        "dropout": dropout,
    }
    weights = None
    if forward.context is not None:
        output = forward.context.attend(query, key, value, rules, layer, **options)
    else:
        plan.check(query, key)
        has_weights = bool(kwargs.get("output_attentions"))
        output, weights = run_attention(query, key, value, plan, rules, **options, output_attentions=has_weights)
    return output.transpose(1, 2).contiguous(), weights


def _former_attention(module: nn.Module, implementation: str) -> Any:
    if implementation == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[implementation]
