"""HSA attention against causal attention without HSA: forward and backward, side by side in one run.

    python benchmarks/attention.py      # table on screen, benchmarks/results/attention.csv

Every measurement of a backend is divided by one of `scaled_dot_product_attention(is_causal=True)` made right before
it; the median of these ratios is reported, so that a machine whose speed drifts does little harm. The limit is the
number of causal pairs over the number of visible pairs.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import report
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, run_attention


TURN = 100  # tokens of a turn of a trajectory


def make_types(length: int, share: float, scattered: bool, seed: int = 0) -> torch.Tensor:
    """Return (1, L) types of which a share is GLOBAL or LANDMARK, token by token or in whole turns."""
    generator = torch.Generator().manual_seed(seed)
    number = length if scattered else -(-length // TURN)
    memory = torch.rand(number, generator=generator) < share
    memory[0] = True
    kinds = torch.where(memory, 1, 2)
    kinds[0] = 0
    return kinds[None] if scattered else kinds.repeat_interleave(TURN)[None, :length]


def visible_pairs(types: torch.Tensor, window: int) -> int:
    """Count the (query, key) pairs that are visible when only NOISE has a window."""
    length = types.shape[1]
    memory = (types[0] != 2).long()
    seen = int(memory.cumsum(0).sum())
    noise = (types[0] == 2).nonzero().flatten()
    return seen + int(torch.clamp(length - noise, max=window + 1).sum())


def seconds(attend: Callable[[], torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> float:
    """Time one forward and backward pass."""
    start = time.perf_counter()
    output = attend()
    torch.autograd.grad(output, inputs, torch.ones_like(output))
    return time.perf_counter() - start


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.2], help="of GLOBAL and LANDMARK tokens")
    parser.add_argument("--backends", nargs="+", default=["dense", "blockwise"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    config = HSAConfig()
    table = Table(title=f"Forward + backward, batch 1, 8 heads of 64, 2 key/value heads, float32, {report.machine()}")
    for heading in ("tokens", "memory", "layout", "backend", "ms", "speed-up over causal", "limit", "plan, ms"):
        table.add_column(heading, justify="right")
    records = []
    for length in options.lengths:
        query = torch.randn(1, 8, length, 64, requires_grad=True)
        key, value = (torch.randn(1, 2, length, 64, requires_grad=True) for _ in range(2))
        inputs = (query, key, value)
        causal = lambda: F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)  # noqa: B023
        seconds(causal, inputs)
        for share in options.shares:
            for scattered in (False, True):
                types = make_types(length, share, scattered)
                start = time.perf_counter()
                plan = AttentionPlan(types, config)
                plan.document_layout()
                plan_seconds = time.perf_counter() - start
                limit = length * (length + 1) / 2 / visible_pairs(types, config.noise_window)
                for backend in options.backends:
                    if backend == "dense" and length > 8192:  # the bias alone would take gigabytes
                        continue
                    attend = lambda: run_attention(*inputs, plan, backend=backend)[0]  # noqa: B023
                    seconds(attend, inputs)
                    pairs = [(seconds(causal, inputs), seconds(attend, inputs)) for _ in range(options.rounds)]
                    speed_up = statistics.median(base / own for base, own in pairs)
                    record = {
                        "tokens": length,
                        "memory_share": share,
                        "layout": "scattered" if scattered else "turns",
                        "backend": backend,
                        "seconds": round(statistics.median(own for _, own in pairs), 4),
                        "causal_seconds": round(statistics.median(base for base, _ in pairs), 4),
                        "speed_up": round(speed_up, 2),
                        "limit": round(limit, 2),
                        "plan_seconds": round(plan_seconds, 5),
                        "threads": options.threads,
                        "machine": report.machine(),
                    }
                    records.append(record)
                    table.add_row(
                        f"{length:,}",
                        f"{share:.0%}",
                        record["layout"],
                        backend,
                        f"{record['seconds'] * 1000:.0f}",
                        f"{speed_up:.2f}",
                        f"{limit:.1f}",
                        f"{plan_seconds * 1000:.1f}",
                    )

    report.write("attention.csv", records)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
