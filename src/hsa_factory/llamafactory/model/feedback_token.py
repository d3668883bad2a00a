"""The feedback token as one special token: looked up, added when missing, its new row set to the mean."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from llamafactory.extras import logging
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class FeedbackToken:
    """The feedback token in a run's tokenizer.

    Attributes:
        token: Its text.
        token_id: Its id.
        is_new: Whether the checkpoint's tokenizer lacks it.
        known_tokens: Number of tokens that the checkpoint's tokenizer has: more were added after it was loaded.
    """

    token: str
    token_id: int
    is_new: bool
    known_tokens: int


def ensure_token(tokenizer: Any, token: str, known_tokens: int | None = None) -> FeedbackToken:
    """Make sure the tokenizer has the feedback token as one special token that does not end generation.

    Args:
        tokenizer: Changed in place. LLaMA-Factory's template must have added its tokens already: they have the ids
            that they have without Feedback.
        token: The feedback token.
        known_tokens: Number of tokens that the checkpoint's tokenizer has; None: as many as there are now.

    Raises:
        ValueError: If the token already has another role, or is not one token.
    """
    for role in ("eos_token", "bos_token", "pad_token", "unk_token"):
        if getattr(tokenizer, role, None) == token:
            raise ValueError(f"feedback.token {token!r} is the tokenizer's {role}; choose a token of its own.")

    if known_tokens is None:
        known_tokens = len(tokenizer)
    is_new = token not in tokenizer.get_vocab()
    if is_new:
        tokenizer.add_tokens([token], special_tokens=True)
        logger.info_rank0(f"Added {token} to the tokenizer as token {tokenizer.convert_tokens_to_ids(token)}.")

    # Every extra special token becomes an EOS of LLaMA-Factory's generation, which the feedback token must not be.
    extra = getattr(tokenizer, "_extra_special_tokens", None)
    if isinstance(extra, list) and token in map(str, extra):
        tokenizer._extra_special_tokens = [other for other in extra if str(other) != token]

    token_id = tokenizer.convert_tokens_to_ids(token)
    pieces = tokenizer.encode(token, add_special_tokens=False)
    if pieces != [token_id]:
        raise ValueError(
            f"feedback.token {token!r} is not one token of this tokenizer (it becomes {pieces}); "
            "split_special_tokens must be off."
        )
    return FeedbackToken(token, token_id, is_new, known_tokens)


def fit_embeddings(model: PreTrainedModel, size: int) -> None:
    """Enlarge the embeddings to hold `size` tokens; a table that is large enough is never touched.

    Raises:
        ValueError: If the model cannot be resized.
    """
    rows = table_sizes(model)[0]
    if size <= rows:
        return

    if getattr(model, "quantization_method", None):
        raise ValueError(
            "A quantized model cannot take a new token. Add it to the unquantized checkpoint first, or choose a "
            "feedback.token that the model has."
        )
    model.resize_token_embeddings(size, pad_to_multiple_of=64, mean_resizing=False)
    logger.info_rank0(f"Resized token embeddings from {rows} to {table_sizes(model)[0]}.")


def table_sizes(model: PreTrainedModel) -> tuple[int, ...]:
    """Return the number of rows of each table that has one a token, the input embeddings first."""
    sizes = []
    for table in _tables(model):
        with _gathered(table):
            sizes.append(table.shape[0])
    return tuple(sizes)


def initialize_rows(
    model: PreTrainedModel, token: FeedbackToken, former_sizes: tuple[int, ...], first_new: int = 0
) -> None:
    """Set the rows of new tokens to the mean of those that the checkpoint's tokens have: the same on every load.

    Rows that the checkpoint has keep their values, but for that of a token that was added in this run: Qwen's tables,
    for one, have rows to spare.

    Args:
        model: The model, resized, before any adapter is put on it.
        token: The feedback token.
        former_sizes: `table_sizes` of the model as it was loaded.
        first_new: Rows before this one are somebody else's to set (`resize_vocab` has LLaMA-Factory do it).
    """
    for table, former_size in zip(_tables(model), former_sizes, strict=True):
        with _gathered(table), torch.no_grad():
            rows = list(range(max(former_size, first_new), table.shape[0]))
            if token.is_new or token.token_id >= former_size:
                rows.append(token.token_id)
            known = table[: min(former_size, token.known_tokens)]
            table[rows] = known.mean(dim=0, dtype=torch.float32).to(table.dtype)


def _tables(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the input embeddings, the output embeddings if they are not the same, and their bias if there is one."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    found = [getattr(layer, name, None) for layer in layers for name in ("weight", "bias")]
    tables = {id(table): table for table in found if isinstance(table, nn.Parameter) and table.is_floating_point()}
    return list(tables.values())


def _gathered(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    """Gather a parameter that DeepSpeed ZeRO-3 has scattered."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()

    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
