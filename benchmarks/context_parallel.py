"""One row over several processes: what is moved and kept, and whether the numbers are those of one process.

    python benchmarks/context_parallel.py                 # gloo on this machine; table, benchmarks/results/context_parallel.csv
    python benchmarks/context_parallel.py --backend nccl  # a GPU for each process
    python benchmarks/context_parallel.py --formulas      # only the formulas of docs/context_parallel.md, against counted rows

On CPU, bytes, memory and correctness are the figures; time is not: all processes share the cores. Memory is how far a process
rises during forward and backward pass, with gradients there already. Without `--formulas` a Qwen3 is trained for a step by one
process, and by R with `context_parallel`.
"""

import argparse
import copy
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import results
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from layouts import make_types
from measuring import machine, peak_mib
from rich.console import Console
from rich.table import Table
from transformers import Qwen3Config, Qwen3ForCausalLM

from hsa_factory import HSAConfig, enable_hsa
from hsa_factory.attention import AttentionPlan, LayerRules
from hsa_factory.attention.context_parallel_plan import Route, Row, Slices
from hsa_factory.models.enable import get_state


CSV = "context_parallel.csv"
SETTING = ("hidden", "layers", "backend", "machine")
MIB = 2**20
HEADS_7B, KV_HEADS_7B, HEAD_SIZE_7B = 28, 4, 128  # Qwen2.5-7B, in bfloat16
WINDOW = HSAConfig().noise_window


def rows_received(length: int, ranks: int, share: float, rank: int) -> float:
    """Return how many keys a rank gets: the memory keys of all slices before, and a window of the others."""
    size = math.ceil(length / ranks)
    return share * rank * size + min(WINDOW, size) * (1 - share) if rank else 0.0


def megabytes_7b(length: int, ranks: int, share: float) -> dict[str, float]:
    """Return what a rank of a 7B model gets in a layer's forward pass in the mean, in MB, by scheme."""
    size, key = math.ceil(length / ranks), 2 * KV_HEADS_7B * HEAD_SIZE_7B * 2
    ours = sum(rows_received(length, ranks, share, rank) for rank in range(ranks)) / ranks
    everything = (ranks - 1) * size * key
    heads = 2 * HEADS_7B + 2 * KV_HEADS_7B  # queries and outputs, keys and values
    ulysses = size * (ranks - 1) / ranks * heads * HEAD_SIZE_7B * 2
    return {name: moved / 1e6 for name, moved in (
        ("hsa", ours * key), ("all-gather", everything), ("ring", everything), ("ulysses", ulysses)
    )}  # fmt: skip


def counted(length: int, ranks: int, share: float) -> list[int]:
    """Return the keys that each rank gets, counted on types that lie scattered."""
    plan = AttentionPlan.from_inputs(make_types(length, share, scattered=True))
    routes = (Route(Row(plan, Slices(length, ranks, rank)), LayerRules.of(HSAConfig())) for rank in range(ranks))
    return [sum(route.got_counts) for route in routes]


def formulas(lengths: list[int], ranks: int, shares: list[float]) -> Table:
    """Check the formulas on counted rows, and return the table of a 7B model.

    Raises:
        AssertionError: If a formula is off by more than chance.
    """
    table = Table(
        title=f"A 7B model over {ranks} ranks, bfloat16: MB received a rank and layer, forward pass, in the mean"
    )
    for heading in ("tokens", "memory", "keys received, by rank", "HSA", "all-gather", "ring", "Ulysses"):
        table.add_column(heading, justify="right")
    for length in lengths:
        for share in shares:
            found = counted(length, ranks, share)
            for rank, number in enumerate(found):
                expected = rows_received(length, ranks, share, rank)
                chance = 5 * math.sqrt(expected * (1 - share)) + 2
                assert abs(number - expected) <= chance, (
                    f"{length}, {share}, rank {rank}: {number}, not {expected:.0f}"
                )
            moved = [f"{megabytes:,.1f}" for megabytes in megabytes_7b(length, ranks, share).values()]
            table.add_row(f"{length:,}", f"{share:.0%}", " ".join(f"{number:,}" for number in found), *moved)
    return table


def make_model(options: argparse.Namespace) -> Qwen3ForCausalLM:
    """Build the same Qwen3 in every process."""
    torch.manual_seed(0)
    heads = options.hidden // 64
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=2048,
            hidden_size=options.hidden,
            intermediate_size=3 * options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=heads,
            num_key_value_heads=max(heads // 2, 1),
            head_dim=64,
            max_position_embeddings=2**20,
        )
    ).train()


def bytes_of(value: Any, seen: set[int]) -> int:
    """Count the bytes of all tensors that an object holds."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, dict):
        return sum(bytes_of(one, seen) for one in value.values())
    if isinstance(value, (list, tuple)):
        return sum(bytes_of(one, seen) for one in value)
    return bytes_of(vars(value), seen) if isinstance(value, (AttentionPlan, Row, Route)) else 0


def measure(model: Any, batch: dict[str, torch.Tensor], device: torch.device) -> tuple[float, float]:
    """Run two steps; return the loss, and the memory in MiB that the second took above what was there."""
    model(**batch).loss.backward()
    model.zero_grad(set_to_none=False)
    loss = []

    def step() -> None:
        loss.append(model(**batch).loss)
        loss[0].backward()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return loss[0].item(), (torch.cuda.max_memory_allocated(device) - before) / MIB
    peak = peak_mib(step)
    return loss[0].item(), peak


def gradient_error(model: Any, expected: Any, ranks: int) -> float:
    """Return the largest difference of the mean gradient to that of one process, relative to the largest gradient."""
    worst, size = 0.0, 0.0
    for one, other in zip(model.parameters(), expected, strict=True):
        if ranks > 1:
            dist.all_reduce(one.grad)
        worst = max(worst, float((one.grad / ranks - other).abs().max()))
        size = max(size, float(other.abs().max()))
    return worst / size


def run(rank: int, ranks: int, meeting: str, options: argparse.Namespace) -> None:
    """In a process: train a step and write down what was seen."""
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if options.backend == "nccl" else torch.device("cpu")
    group = None
    if ranks > 1:
        dist.init_process_group(options.backend, init_method=f"file://{meeting}", rank=rank, world_size=ranks)
        group = dist.new_group(list(range(ranks)))
    ids = torch.randint(0, 2048, (1, options.length), generator=torch.Generator().manual_seed(0)).to(device)
    batch = {
        "input_ids": ids,
        "labels": ids,
        "semantic_ids": make_types(options.length, options.share, True).to(device),
    }
    model = enable_hsa(make_model(options).to(device), HSAConfig(), context_parallel=group)
    loss, peak = measure(model, batch, device)
    saved = Path(f"{meeting}.one")
    if ranks == 1:
        torch.save((loss, peak, [p.grad for p in model.parameters()]), saved)
        return
    expected_loss, whole_peak, grads = torch.load(saved, map_location=device)
    context = get_state(model).context
    context_pass, traffic = context.last, context.last.traffic()
    plan = bytes_of([context_pass._row, list(context_pass._routes.values())], set()) / MIB
    torch.save(
        {
            "ranks": ranks,
            "rank": rank,
            "tokens": options.length,
            "share": options.share,
            "rows_received": traffic.rows_received // traffic.layers,
            "rows_all_gather": traffic.rows_all_gather // traffic.layers,
            "kb_received": round(traffic.bytes_received / traffic.layers / 1e3, 1),
            "kb_sent": round(traffic.bytes_sent / traffic.layers / 1e3, 1),
            "kb_all_gather": round(traffic.bytes_all_gather / traffic.layers / 1e3, 1),
            "peak_mib": round(peak, 1),
            "peak_mib_of_one": round(whole_peak, 1),
            "plan_mib": round(plan, 3),
            "loss_error": f"{abs(loss - expected_loss) / expected_loss:.1e}",
            "gradient_error": f"{gradient_error(model, grads, ranks):.1e}",
            "hidden": options.hidden,
            "layers": options.layers,
            "backend": options.backend,
            "machine": machine(),
        },
        f"{meeting}.{rank}",
    )
    dist.destroy_process_group()


def records(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what every rank of every number of ranks has written down."""
    with tempfile.TemporaryDirectory() as directory:
        meeting = os.path.join(directory, "meeting")
        mp.spawn(run, (1, meeting, options))
        for ranks in options.ranks:
            here = copy.copy(options)
            one = f"{meeting}{ranks}"
            os.link(f"{meeting}.one", f"{one}.one")
            mp.spawn(run, (ranks, one, here), nprocs=ranks)
            for rank in range(ranks):
                yield torch.load(f"{one}.{rank}")


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--share", type=float, default=0.05, help="of GLOBAL and LANDMARK tokens (%(default)s)")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--backend", choices=["gloo", "nccl"], default="gloo")
    parser.add_argument("--formulas", action="store_true")
    options = parser.parse_args()

    console = Console()
    for ranks in (4, 8):
        console.print(formulas([32_768, 131_072, 1_048_576], ranks, [0.05, 0.1, 0.2]))
    if options.formulas:
        return
    found = list(records(options))
    table = Table(title=f"One step of a Qwen3, width {options.hidden}, {options.layers} layers, float32")
    headings = [heading for heading in found[0] if heading not in (*SETTING, "share", "kb_sent", "kb_all_gather")]
    for heading in headings:
        table.add_column(heading.replace("_", " "), justify="right")
    for record in found:
        table.add_row(*(str(record[heading]) for heading in headings))
    console.print(table)
    results.merge(CSV, found, ["ranks", "rank", "tokens", "share", "hidden", "layers", "backend"])


if __name__ == "__main__":
    main()
