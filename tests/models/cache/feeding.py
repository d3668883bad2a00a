"""Feeding tokens to a model with an `HSACache`, and one forward over all of them to compare with."""

import torch

from hsa_factory import HSAConfig, enable_hsa, tiny


MODELS = tiny.MODEL_TYPES
HYBRID = ("qwen3_5_text",)
SOFTMAX = tuple(model_type for model_type in MODELS if model_type not in HYBRID)
CONFIG = HSAConfig(noise_window=5)
LENGTH = 90


def build(model_type="llama", config=CONFIG, **overrides):
    return enable_hsa(tiny.build_model(model_type, **overrides), config)


def tokens(batch=2, length=LENGTH, seed=0):
    return torch.randint(0, 1000, (batch, length), generator=torch.Generator().manual_seed(seed))


def types(batch=2, length=LENGTH, seed=1):
    return torch.randint(0, 3, (batch, length), generator=torch.Generator().manual_seed(seed))


def runs(batch=2, length=LENGTH, seed=1):
    """Types that stay the same for up to 20 tokens, in each row by itself."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(batch):
        lengths = torch.randint(1, 20, (length,), generator=generator)
        kinds = torch.randint(0, 3, (length,), generator=generator)
        rows.append(kinds.repeat_interleave(lengths)[:length])
    return torch.stack(rows)


@torch.no_grad()
def feed(model, cache, ids, kinds, sizes, mask=None, **inputs):
    """Feed tokens in pieces; return all logits."""
    logits, start = [], cache.get_seq_length()
    for size in sizes:
        stop = start + size
        part = {} if mask is None else {"attention_mask": mask[:, :stop]}
        output = model(
            input_ids=ids[:, start:stop], semantic_ids=kinds[:, start:stop], past_key_values=cache, **part, **inputs
        )
        assert output.past_key_values is cache
        logits.append(output.logits)
        start = stop
        assert cache.get_seq_length() == stop
    return torch.cat(logits, dim=1)


@torch.no_grad()
def whole(model, ids, kinds, **inputs):
    return model(input_ids=ids, semantic_ids=kinds, use_cache=False, **inputs).logits


def close(actual, expected, tolerance=5e-5):
    assert actual.isfinite().all()
    error, size = (actual - expected).abs().max(), expected.abs().max()
    assert error <= tolerance * max(1, size), f"{error:.2e} off at a size of {size:.2e}"
