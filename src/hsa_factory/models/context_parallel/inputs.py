"""What a text model is called with, cut to the slice of one rank."""

from typing import Any

import torch
from transformers import PreTrainedModel

from ...attention.context_parallel_plan import Slices
from ..by_name import by_name
from ..forward_pass import KEYWORD, ForwardPass
from ..transformers_versions import find_cache


_TOKENS = ("input_ids", "attention_mask", "visual_pos_masks")  # (B, L)
_DEEPSTACK = "deepstack_visual_embeds"


def cut_to_slice(
    module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Cut the text model's arguments: what belongs to tokens is the rank's part of it, and positions stay those of the row.

    Raises:
        ValueError: If there is a cache, an argument is not known to be cut or shared, or attention weights are asked for.
    """
    forward: ForwardPass | None = kwargs.get(KEYWORD)
    if forward is None or forward.context is None:
        return None
    given, slices = by_name(module, args, kwargs), forward.context.slices
    cache = find_cache(given)
    if cache is not None and cache.get_seq_length():
        raise ValueError("Context parallelism runs whole rows: it has no cache, and generates nothing.")
    if given.get("output_attentions") or getattr(module.config, "output_attentions", False):
        raise ValueError(
            "Context parallelism has the attention weights of a slice only: `output_attentions` is refused."
        )
    embeddings = given.get("inputs_embeds")
    tokens = given.get("input_ids") if embeddings is None else embeddings
    assert tokens is not None, "the model's own error for this comes before"
    if given.get("position_ids") is None:
        rows, length = tokens.shape[:2]
        given["position_ids"] = torch.arange(length, device=tokens.device).expand(rows, length)
    return (), {name: _cut(name, value, given, slices) for name, value in given.items()} | {"use_cache": False}


def _cut(name: str, value: Any, given: dict[str, Any], slices: Slices) -> Any:
    if name == _DEEPSTACK and value is not None:
        places = given["visual_pos_masks"].nonzero()[:, 1]
        own = (places >= slices.own.start) & (places < slices.own.stop)
        return [embeddings[own.to(embeddings.device)] for embeddings in value]
    if not isinstance(value, torch.Tensor):
        return value
    if name in _TOKENS or name == "inputs_embeds":
        return slices.cut(value)
    if name in ("position_ids", "cache_position"):  # (L,), (B, L), or (axes, B, L)
        return slices.cut(value, dim=value.dim() - 1)
    if slices.length in value.shape:
        raise ValueError(
            f"Context parallelism does not know how to cut {name!r}, {tuple(value.shape)}, which the model gives its text model."
        )
    return value
