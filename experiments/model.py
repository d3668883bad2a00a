"""A tiny Qwen3 with random weights, saved as a checkpoint that LLaMA-Factory loads by its path."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM


SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,  # 0.02 is for wide models: at width 64 what layers add would hardly be heard at first
    # Qwen3's own theta: at 10,000 too few of 16 dimensions turn slowly enough to find a token far back by what it is
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
QK_NORM = 1.6
"""Where the weights of q_norm and k_norm begin. At 1, heads of 16 can hardly single out one token at first."""


def shape(positions: int) -> dict[str, Any]:
    """Return the shape of a model with so many positions; they are rotary, so that they cost nothing."""
    return {**SHAPE, "max_position_embeddings": positions}


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int, positions: int = 8192) -> Qwen3ForCausalLM:
    """Return a model with random weights that the seed decides.

    Args:
        tokenizer: Its own.
        seed: Of its weights.
        positions: Tokens of the longest history that it may read.
    """
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape(positions),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.fill_(QK_NORM)
    return model


def save_model(directory: str | Path, tokenizer: PreTrainedTokenizerBase, seed: int, positions: int = 8192) -> int:
    """Write a new model and its tokenizer, and return its number of parameters. Arguments as `build_model`."""
    model = build_model(tokenizer, seed, positions)
    model.save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))
    return sum(parameter.numel() for parameter in model.parameters())
