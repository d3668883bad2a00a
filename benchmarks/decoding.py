"""Decoding on a cache that already holds a trajectory, with HSA's cache or transformers' own, on any device."""

from collections.abc import Callable

import torch
from layouts import make_turns
from measuring import CLOCKS, wait
from transformers import DynamicCache, Qwen3ForCausalLM

from hsa_factory import HSAConfig, disable_hsa, enable_hsa
from hsa_factory.attention import LayerRules
from hsa_factory.models import HSACache, make_tagger


CONFIG = HSAConfig(generated_type="NOISE")
CHUNK = 256  # of keys dropped together
TURNS = "turns "  # before their number: further variants


def config_of(variant: str) -> HSAConfig:
    """Return the rules of a variant."""
    if not variant.startswith(TURNS):
        return CONFIG
    return HSAConfig(noise_turns=int(variant.removeprefix(TURNS)), generated_type="NOISE")


def fill(cache: DynamicCache | HSACache, model: Qwen3ForCausalLM, types: torch.Tensor) -> None:
    """Put random keys and values of a prompt into a cache."""
    config, length = model.config, types.shape[1]
    shape = (1, config.num_key_value_heads, length, config.head_dim)
    if isinstance(cache, HSACache):
        rules = LayerRules.of(cache.config)
        cache.bind(config, dict.fromkeys(range(config.num_hidden_layers), rules), cache.config)
        types = types.to(model.device)
        cache.begin(types, types, None, make_turns(length, real=True).to(model.device))
    for layer in range(config.num_hidden_layers):
        cache.update(*(torch.randn(shape, dtype=model.dtype, device=model.device) for _ in range(2)), layer)
    if isinstance(cache, HSACache):
        cache.commit()


def cache_bytes(cache: DynamicCache | HSACache) -> int:
    """Return the memory of all keys and values."""
    if isinstance(cache, HSACache):
        return cache.report().bytes
    return sum(tensor.untyped_storage().nbytes() for layer in cache.layers for tensor in (layer.keys, layer.values))


def make_cache(variant: str, model: Qwen3ForCausalLM) -> DynamicCache | HSACache:
    """Make an empty cache; HSA's types tokens as `generate` lets it."""
    if variant == "plain":
        return DynamicCache(config=model.config)
    config = config_of(variant)
    return HSACache(config, make_tagger(config), evict=variant != "no eviction")


def switch(model: Qwen3ForCausalLM, variant: str) -> None:
    """Switch HSA on or off."""
    disable_hsa(model) if variant == "plain" else enable_hsa(model, config_of(variant))


def decode(
    model: Qwen3ForCausalLM, cache: DynamicCache | HSACache, steps: int, clock: Callable[[], float] = CLOCKS["wall"]
) -> list[float]:
    """Decode greedily; return the seconds of each step by a clock."""
    token, seconds = torch.tensor([[5]], device=model.device), []
    wait(model.device)
    for _ in range(steps):
        start = clock()
        logits = model(input_ids=token, past_key_values=cache, use_cache=True).logits
        token = logits[:, -1:].argmax(-1)
        wait(model.device)
        seconds.append(clock() - start)
    return seconds


def visible_keys(variant: str, types: torch.Tensor) -> int:
    """Count the keys that the first generated token sees."""
    config, turns = config_of(variant), make_turns(types.shape[1], real=True)
    is_noise = types == 2
    if config.noise_turns is None:
        return int((~is_noise).sum()) + config.noise_window + 1
    return int((~is_noise | (turns[:, -1:] - turns <= config.noise_turns)).sum())
