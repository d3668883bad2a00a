"""Reading a prompt, all but its last piece, before `generate` goes on from it."""

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from ..cache import HSACache
from ..forward_pass import HSAState
from ..rope_positions import conversation_positions, has_mrope, takes_media_types
from ..transformers_versions import CACHE
from .media import IMAGE_NAMES, MEDIA_NAMES, MediaPrompt, add_media_types


PREFILL_CHUNK = 4096  # tokens of a long prompt that go through the model together


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    state: HSAState,
    input_ids: torch.Tensor,
    cache: HSACache,
    inputs: dict[str, Any],
    copies: int = 1,
) -> None:
    """Read a prompt in pieces, so that memory grows with what is kept only; the last one is left to `generate`.

    Pieces do not cut images or videos. After a cache, layers of linear attention go on by one token at a time.

    Args:
        model: With HSA on.
        state: HSA's state.
        input_ids: (B, L), the whole conversation.
        cache: What of it has been seen.
        inputs: What else `generate` is given, `attention_mask` (B, L) included. Images that were read are taken out, and
            `mm_token_type_ids` and `position_ids` are put in where transformers would not find them.
        copies: Into how many rows `generate` will make of each.

    Raises:
        ValueError: If images or videos do not fit the tokens, or cannot be read.
    """
    entry: Any = model.base_model
    length, start = input_ids.shape[1], cache.get_seq_length()
    known = inspect.signature(model.forward).parameters
    size = PREFILL_CHUNK
    if state.is_hybrid:
        size = 1 if start else length
        if start:
            is_text = inputs["attention_mask"] != 0
            state.refuse_padding(is_text | (is_text.cumsum(dim=1) == 0), 0)
    if has_mrope(entry):
        add_media_types(entry, input_ids, inputs)
    has_other_media = _has_other_media(model, entry, inputs)
    if not start and (has_other_media or length <= size):
        return

    media = MediaPrompt(entry, input_ids, inputs if has_mrope(entry) and not has_other_media else {})
    positions = conversation_positions(entry, input_ids, inputs["attention_mask"], inputs, cache)
    if "position_ids" in known:
        inputs["position_ids"] = positions
    if has_other_media:
        return

    new_media = media.select(start)
    if new_media and state.is_hybrid:
        raise ValueError(
            f"{state.model_name} has layers without softmax attention, which go on from a cache by one token at a time: "
            "it reads images and videos in the first turn only. Begin a new cache."
        )
    text_only_from = media.last_place() if new_media and copies > 1 else 0
    if text_only_from >= length:
        raise ValueError("A prompt that ends with an image cannot have beams or several sequences here: add text.")

    last_logits = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    while length - start > size or start < text_only_from:
        stop = media.next_cut(start, min(start + size, length - 1))
        if stop >= length:
            break
        model(
            input_ids=input_ids[:, start:stop],
            attention_mask=inputs["attention_mask"][:, :stop],
            position_ids=positions[..., start:stop],
            use_cache=True,
            **{CACHE: cache},
            **media.select(start, stop),
            **last_logits,
        )
        start = stop

    if media:
        for name in MEDIA_NAMES:
            inputs.pop(name, None)
        inputs |= media.select(start)


def _has_other_media(model: PreTrainedModel, entry: Any, inputs: dict[str, Any]) -> bool:
    """Whether the model is given tensors of which we do not know how to hand them out in pieces."""
    known = {"attention_mask"}
    if has_mrope(entry):
        known |= IMAGE_NAMES
    if has_mrope(entry) and takes_media_types(entry):
        known |= MEDIA_NAMES | set(inspect.signature(entry.get_rope_index).parameters)
    taken = set(inspect.signature(model.forward).parameters) - known
    return any(isinstance(value, torch.Tensor) for name, value in inputs.items() if name in taken)
