"""A training step of models with random weights, with and without HSA: forward, loss and backward, checkpointed.

The loss is that of up to 2,048 tokens, about as many as an agent's replies have, so that the logits of a vocabulary of
150,000 do not hide the attention. The optimizer is left out: it is the same.
"""

import contextlib
import statistics
from collections.abc import Callable, Iterator
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
        short: Tokens; shorter rows are run more often, up to `most` times, as the CPU's time decides there, which varies.
        most: See there.
        dtype: Of the weights.
    """

    models: dict[str, tuple[dict, tuple[int, ...]]] = field(
        default_factory=lambda: {
            "Qwen3-0.6B": (QWEN3_06B, (2048, 4096, 8192, 16384, 32768, 65536)),
            "4 layers of 8B": (LAYERS_OF_8B, (4096, 16384, 32768, 65536, 131072)),
        }
    )
    rounds: int = 3
    short: int = 16384
    most: int = 10
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def smoke(cls) -> "Sizes":
        """Return what a CPU does in a second."""
        return cls({"tiny": (TINY, (96,))}, 1, 0, 1, torch.float32)


def run(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """Measure all, the shortest rows first."""
    models: dict[str, Qwen3ForCausalLM] = {}
    for name, length in _in_order(sizes):
        cases = [{"model": name, "tokens": length, "variant": variant} for variant in VARIANTS]
        if all(rows.is_finished(**case) for case in cases):
            continue
        formers = [rows.find(**case | {"tokens": length // 2}) for case in cases]
        expected = sum(2 * (sizes.rounds + 2) * float(former["seconds"]) for former in formers if former is not None)
        steps = _Steps(models, name, length, device, sizes)
        for case in cases:
            rows.measure(lambda case=case: steps.measured(case["variant"]), expected, **case)
            expected = 0.0  # all are measured with the first
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


class _Steps:
    """The steps of a model at a length: all variants in turn, so that a machine whose speed drifts does little harm."""

    def __init__(
        self, models: dict[str, Qwen3ForCausalLM], name: str, length: int, device: torch.device, sizes: Sizes
    ) -> None:
        self._models, self._name, self._length, self._device, self._sizes = models, name, length, device, sizes
        self._found: dict[str, dict] = {}

    def measured(self, variant: str) -> dict:
        """Return what was measured of a variant, all of them at the first call."""
        if not self._found:
            self._found = self._measure()
        return self._found[variant]

    def _measure(self) -> dict[str, dict]:
        sizes, device = self._sizes, self._device
        if self._name not in self._models:
            self._models[self._name] = make_model(sizes.models[self._name][0], device, sizes.dtype).train()
            self._models[self._name].gradient_checkpointing_enable()
        model = self._models[self._name]
        first, peak, times = {}, {}, {variant: [] for variant in VARIANTS}
        for variant in VARIANTS:
            with self._step(model, variant) as step:
                first[variant] = seconds(step, device, 1)
                peak[variant] = peak_mib(step, device)
        for _ in range(min(sizes.most, sizes.rounds * max(1, sizes.short // self._length))):
            for variant, runs in times.items():
                with self._step(model, variant) as step:
                    runs.append(seconds(step, device, 1))
        taken = {variant: statistics.median(runs) for variant, runs in times.items()}
        return {
            variant: {
                "seconds": round(taken[variant], 5),
                "tokens_per_second": round(self._length / taken[variant], 1),
                "over_plain": round(taken[variant] / taken[PLAIN], 3),
                "first_step_s": round(first[variant], 3),
                "peak_mib": peak[variant],
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "layers": model.config.num_hidden_layers,
            }
            for variant in VARIANTS
        }

    @contextlib.contextmanager
    def _step(self, model: Qwen3ForCausalLM, variant: str) -> Iterator[Callable[[], None]]:
        """Yield a step of a variant, and leave the model as it was."""
        rules = VARIANTS[variant]
        batch = _batch(model.config.vocab_size, self._length, self._device, rules)
        if rules is not None:
            enable_hsa(model, rules)

        def step() -> None:
            model.zero_grad(set_to_none=True)
            _loss(model, **batch).backward()

        try:
            yield step
        finally:
            model.zero_grad(set_to_none=True)
            disable_hsa(model)


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
