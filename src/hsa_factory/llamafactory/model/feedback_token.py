"""The feedback marker as one special token: looked up, added when missing, its new row set to the mean."""

from contextlib import nullcontext
from typing import Any

import torch
from llamafactory.extras import logging
from transformers.integrations import is_deepspeed_zero3_enabled


logger = logging.get_logger(__name__)


def ensure_marker(tokenizer: Any, token: str) -> int | None:
    """Make sure the tokenizer has the marker as one special token that does not end generation.

    Args:
        tokenizer: Changed in place.
        token: The marker.

    Returns:
        The id if it was added now, None if it was there.

    Raises:
        ValueError: If the token already has another role.
    """
    for role in ("eos_token", "bos_token", "pad_token", "unk_token"):
        if getattr(tokenizer, role, None) == token:
            raise ValueError(f"feedback.token {token!r} is the tokenizer's {role}; choose a token of its own.")

    added = None
    if token not in tokenizer.get_vocab():
        tokenizer.add_tokens([token], special_tokens=True)
        added = tokenizer.convert_tokens_to_ids(token)
        logger.info_rank0(f"Added {token} to the tokenizer as token {added}.")

    # Every extra special token becomes an EOS of LLaMA-Factory's generation, which the marker must not be.
    extra = getattr(tokenizer, "_extra_special_tokens", None)
    if isinstance(extra, list) and token in map(str, extra):
        tokenizer._extra_special_tokens = [other for other in extra if str(other) != token]

    pieces = tokenizer.encode(token, add_special_tokens=False)
    if pieces != [tokenizer.convert_tokens_to_ids(token)]:
        raise ValueError(
            f"feedback.token {token!r} is not one token of this tokenizer (it becomes {pieces}); "
            "split_special_tokens must be off."
        )
    return added


def fit_embeddings(model: Any, tokenizer: Any) -> None:
    """Enlarge the embeddings to hold every token; a table that is large enough is never touched.

    Raises:
        ValueError: If the model cannot be resized.
    """
    embeddings = model.get_input_embeddings()
    with _gathered([embeddings.weight]):
        rows = embeddings.weight.shape[0]
    if len(tokenizer) <= rows:
        return

    if getattr(model, "quantization_method", None):
        raise ValueError(
            "A quantized model cannot take a new token. Add it to the unquantized checkpoint first, or choose a "
            "feedback.token that the tokenizer has."
        )
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    logger.info_rank0(f"Resized token embeddings from {rows} to {model.get_input_embeddings().weight.shape[0]}.")


def initialize_row(model: Any, token_id: int) -> None:
    """Set a new token's input and output embedding to the mean of those before it: the same on every load.

    Args:
        model: The model before any adapter is put on it.
        token_id: The new token.
    """
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    weights = {id(layer.weight): layer.weight for layer in layers if layer is not None}  # tied: once
    for weight in weights.values():
        with _gathered([weight]), torch.no_grad():
            weight[token_id] = weight[:token_id].float().mean(dim=0).to(weight.dtype)


def _gathered(parameters: list[torch.nn.Parameter]) -> Any:
    """Gather parameters that DeepSpeed ZeRO-3 has scattered."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()

    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)
