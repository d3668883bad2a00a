"""Decoding on a cache that holds a trajectory: HSA's cache, from which keys go, against transformers' DynamicCache."""

import statistics
from dataclasses import dataclass, field

import torch
from decoding import cache_bytes, decode, fill, make_cache, switch
from layouts import SHARE_WITH_TURNS, make_types
from transformers import Qwen3ForCausalLM

from .clock import peak_mib
from .rows import Rows
from .training_part import QWEN3_06B, TINY, make_model


KEYS = ("model", "tokens", "variant")
COLUMNS = ("tokens_per_second", "of_plain", "cache_mib", "cache_of_plain", "peak_mib", "memory_share")
PLAIN = "plain"
VARIANTS = (PLAIN, "no eviction", "hsa", "turns 1")


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        model: Its name.
        config: Its configuration.
        lengths: Tokens in the cache, growing.
        steps: Of a round.
        rounds: Of which the median counts, after one more.
        dtype: Of weights and cache.
    """

    model: str = "Qwen3-0.6B"
    config: dict = field(default_factory=lambda: QWEN3_06B)
    lengths: tuple[int, ...] = (2048, 8192, 32768, 131072)
    steps: int = 12
    rounds: int = 2
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def smoke(cls) -> "Sizes":
        """Return what a CPU does in a second."""
        return cls("tiny", TINY, (128,), 2, 1, torch.float32)


def run(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """Measure all, the shortest contexts first."""
    models: list[Qwen3ForCausalLM] = []
    with torch.inference_mode():
        for length in sizes.lengths:
            for variant in VARIANTS:
                case = {"model": sizes.model, "tokens": length, "variant": variant}
                rows.measure(lambda case=case: _measure(models, rows, device, sizes, **case), **case)


def _measure(
    models: list[Qwen3ForCausalLM],
    rows: Rows,
    device: torch.device,
    sizes: Sizes,
    model: str,
    tokens: int,
    variant: str,
) -> dict:
    if not models:
        models.append(make_model(sizes.config, device, sizes.dtype).eval())
    network = models[0]
    switch(network, variant)
    try:
        cache = make_cache(variant, network)
        fill(cache, network, make_types(tokens, SHARE_WITH_TURNS, scattered=True))
        size = cache_bytes(cache) / 2**20
        peak = peak_mib(lambda: decode(network, cache, 2), device)
        rounds = [statistics.mean(decode(network, cache, sizes.steps)) for _ in range(sizes.rounds + 1)]
    finally:
        switch(network, PLAIN)
    speed = 1 / statistics.median(rounds[1:])
    plain = rows.find(model=model, tokens=tokens, variant=PLAIN)
    of_plain = {} if plain is None else {"of_plain": round(speed / float(plain["tokens_per_second"]), 3)}
    if plain is not None:
        of_plain["cache_of_plain"] = round(size / float(plain["cache_mib"]), 4)
    return of_plain | {
        "tokens_per_second": round(speed, 2),
        "cache_mib": round(size, 4),
        "peak_mib": peak,
        "memory_share": SHARE_WITH_TURNS,
    }
