"""A training step of a 2-layer Qwen3, HSA on against HSA off: forward, loss and backward, side by side in one run.

    python benchmarks/model_step.py      # table on screen, benchmarks/results/model_step.csv

The types are those of a trajectory: turns of 100 tokens, of which a share is GLOBAL or LANDMARK. The two variants are
one model, whose HSA is switched on and off; they take turns, and the median of the ratios is reported.
"""

import argparse
import statistics
import time

import results
import torch
from layouts import make_types
from measuring import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import Qwen3Config, Qwen3ForCausalLM

from hsa_factory import HSAConfig, disable_hsa, enable_hsa


def make_model(hidden: int) -> Qwen3ForCausalLM:
    """Build a Qwen3 of 2 layers with heads of 64, four query heads to a key/value head."""
    heads = max(hidden // 64, 4)
    config = Qwen3Config(
        vocab_size=2048,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
        head_dim=64,
        max_position_embeddings=2**20,
    )
    return Qwen3ForCausalLM(config).train()


def step_seconds(model: Qwen3ForCausalLM, batch: dict[str, torch.Tensor]) -> float:
    """Time one forward and backward pass."""
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    model(**batch).loss.backward()
    return time.perf_counter() - start


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--hidden", type=int, nargs="+", default=[512])
    parser.add_argument("--share", type=float, default=0.1, help="of GLOBAL and LANDMARK tokens (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    table = Table(title=f"Training step, Qwen3 of 2 layers, batch 1, float32, {machine()}")
    for heading in ("hidden size", "tokens", "HSA off, ms", "HSA on, ms", "on / off"):
        table.add_column(heading, justify="right")
    records = []
    cases = [(hidden, length) for hidden in options.hidden for length in options.lengths]
    for hidden, length in track(cases, description="measuring"):
        torch.manual_seed(0)
        model = make_model(hidden)
        input_ids = torch.randint(0, 2048, (1, length))
        plain = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": input_ids}
        typed = {**plain, "semantic_ids": make_types(length, options.share, scattered=False)}
        pairs = []
        for _ in range(options.rounds + 1):
            off = step_seconds(model, plain)
            enable_hsa(model, HSAConfig())
            pairs.append((off, step_seconds(model, typed)))
            disable_hsa(model)
        off, on = (statistics.median(times) for times in zip(*pairs[1:]))
        ratio = statistics.median(on / off for off, on in pairs[1:])
        record = {
            "hidden_size": hidden,
            "tokens": length,
            "off_seconds": round(off, 5),
            "on_seconds": round(on, 5),
            "on_over_off": round(ratio, 3),
            "memory_share": options.share,
            "threads": options.threads,
            "machine": machine(),
        }
        records.append(record)
        table.add_row(f"{hidden}", f"{length:,}", f"{off * 1000:.1f}", f"{on * 1000:.1f}", f"{ratio:.2f}")

    results.write("model_step.csv", records)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
