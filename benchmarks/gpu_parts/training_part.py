"""A training step of models with random weights, with and without HSA: forward, loss and backward, checkpointed.

The loss is that of up to 2,048 tokens, about as many as an agent's replies have, so that the logits of a vocabulary of
150,000 do not hide the attention. The optimizer is left out: it is the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from layouts import SHARE_WITH_TURNS, make_turns, make_types
from transformers import Qwen3Config, Qwen3ForCausalLM

from hsa_factory import HSAConfig, disable_hsa, enable_hsa

from .clock import peak_mib, seconds
from .rows import Rows


KEYS = ("model", "tokens", "variant")
COLUMNS = ("seconds", "tokens_per_second", "over_plain", "first_step_s", "peak_mib", "parameters", "layers")
PLAIN = "plain"
VARIANTS: dict[str, HSAConfig | None] = {
    PLAIN: None,
    "window 50": HSAConfig(),
    "turns 1": HSAConfig(noise_turns=1),
}
TRAINED = 2048  # tokens with a loss

QWEN3_06B = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2**20,
}
LAYERS_OF_8B = QWEN3_06B | {
    "vocab_size": 8192,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
}
TINY = QWEN3_06B | {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        models: Configurations by name, and the lengths of each, growing.
        rounds: Steps, of which the median counts.
        short: Tokens; shorter rows are run more often, as the CPU's time decides there, which varies.
        dtype: Of the weights.
    """

    models: dict[str, tuple[dict, tuple[int, ...]]] = field(
        default_factory=lambda: {
            "Qwen3-0.6B": (QWEN3_06B, (4096, 8192, 16384, 32768, 65536)),
            "4 layers of 8B": (LAYERS_OF_8B, (4096, 16384, 32768, 65536, 131072)),
        }
    )
    rounds: int = 3
    short: int = 16384
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def smoke(cls) -> "Sizes":
        """Return what a CPU does in a second."""
        return cls({"tiny": (TINY, (96,))}, 1, 0, torch.float32)


def run(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """Measure all, the shortest rows first."""
    models: dict[str, Qwen3ForCausalLM] = {}
    for name, length in _in_order(sizes):
        cases = [{"model": name, "tokens": length, "variant": variant} for variant in VARIANTS]
        if all(rows.is_finished(**case) for case in cases):
            continue
        for case in cases:
            former = rows.find(**case | {"tokens": length // 2})
            expected = 0.0 if former is None else 2 * (sizes.rounds + 2) * float(former["seconds"])
            rows.measure(lambda case=case: _measure(models, rows, device, sizes, **case), expected, **case)
    models.clear()


def _in_order(sizes: Sizes) -> Iterator[tuple[str, int]]:
    found = [(length, name) for name, (_, lengths) in sizes.models.items() for length in lengths]
    yield from ((name, length) for length, name in sorted(found))


def make_model(config: dict, device: torch.device, dtype: torch.dtype) -> Qwen3ForCausalLM:
    """Build a model with random weights where it is to run."""
    torch.manual_seed(0)
    with device:
        model = Qwen3ForCausalLM(Qwen3Config(**config, attn_implementation="sdpa"))
    return model.to(dtype)


def _measure(
    models: dict[str, Qwen3ForCausalLM],
    rows: Rows,
    device: torch.device,
    sizes: Sizes,
    model: str,
    tokens: int,
    variant: str,
) -> dict:
    if model not in models:
        models[model] = make_model(sizes.models[model][0], device, sizes.dtype).train()
        models[model].gradient_checkpointing_enable()
    network, rules = models[model], VARIANTS[variant]
    batch = _batch(network.config.vocab_size, tokens, device, rules)
    disable_hsa(network) if rules is None else enable_hsa(network, rules)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        _loss(network, **batch).backward()

    try:
        first = seconds(step, device, 1)
        peak = peak_mib(step, device)
        taken = seconds(step, device, sizes.rounds * max(1, sizes.short // tokens))
    finally:
        network.zero_grad(set_to_none=True)
        disable_hsa(network)
    plain = rows.find(model=model, tokens=tokens, variant=PLAIN)
    over_plain = 1.0 if rules is None else None if plain is None else taken / float(plain["seconds"])
    return {
        "seconds": round(taken, 5),
        "tokens_per_second": round(tokens / taken, 1),
        "over_plain": None if over_plain is None else round(over_plain, 3),
        "first_step_s": round(first, 3),
        "peak_mib": peak,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "layers": network.config.num_hidden_layers,
    }


def _batch(vocabulary: int, tokens: int, device: torch.device, rules: HSAConfig | None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randint(0, vocabulary, (1, tokens), generator=generator)}
    if rules is not None:
        batch["semantic_ids"] = make_types(tokens, SHARE_WITH_TURNS, scattered=True)
        if rules.has_turns:
            batch["turn_ids"] = make_turns(tokens, real=True)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _loss(model: Qwen3ForCausalLM, input_ids: torch.Tensor, **types: torch.Tensor) -> torch.Tensor:
    length = input_ids.shape[1]
    trained = torch.linspace(0, length - 2, min(TRAINED, length - 1), device=input_ids.device).long()
    logits = model(input_ids=input_ids, logits_to_keep=trained, use_cache=False, **types).logits
    return F.cross_entropy(logits[0].float(), input_ids[0, trained + 1])
