"""Tiny models with HSA, typed input, and how results are compared."""

import torch

from hsa_factory import HSAConfig, enable_hsa, tiny


MODELS = tiny.MODEL_TYPES
VISION = tuple(tiny.VISION_MODELS)
HYBRID = ("qwen3_5_text",)  # its linear layers mix documents and remember without bound, with HSA and without
SOFTMAX = tuple(model_type for model_type in MODELS if model_type not in HYBRID)
LENGTH = 70  # more than the window of NOISE and the models' own windows


def build(model_type, **overrides):
    model = tiny.build_model(model_type, **overrides)
    if model_type == "gemma2":  # stock sdpa leaves its soft-cap out
        model.set_attn_implementation("eager")
    return model


def enabled(model_type, config=None, **overrides):
    return enable_hsa(build(model_type, **overrides), config or HSAConfig())


def tokens(batch=2, length=LENGTH, seed=0):
    return torch.randint(0, 1000, (batch, length), generator=torch.Generator().manual_seed(seed))


def types(batch=2, length=LENGTH, seed=1):
    return torch.randint(0, 3, (batch, length), generator=torch.Generator().manual_seed(seed))


def run(model, input_ids=None, **inputs):
    with torch.no_grad():
        return model(input_ids=input_ids, **{"use_cache": False} | inputs).logits


def close(actual, expected, tolerance=2e-5):
    assert actual.shape == expected.shape and actual.isfinite().all()
    error, size = (actual - expected).abs().max(), expected.abs().max()
    assert error <= tolerance * max(1, size), f"{error:.2e} off at a size of {size:.2e}"


def differs(actual, expected):
    assert (actual - expected).abs().max() > 1e-2


def step(model, input_ids=None, **inputs):
    """One training step; return the loss and all gradients."""
    model.train()
    model.zero_grad()
    loss = model(input_ids=input_ids, labels=input_ids, use_cache=False, **inputs).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


PACKED = (30, 1, 25, 14)
MASK = torch.tensor([[number for number, length in enumerate(PACKED, 1) for _ in range(length)]])
POSITIONS = torch.cat([torch.arange(length) for length in PACKED])[None]


def positions(model_type, rows=3):
    """Positions that start anew in every document; M-RoPE has three rows of them, or the text's own before them."""
    return POSITIONS.expand(rows, 1, -1) if model_type in VISION else POSITIONS
