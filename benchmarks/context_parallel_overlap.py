"""What is computed while keys travel between ranks: one layer's attention, by into how many parts its heads are divided.

    python benchmarks/context_parallel_overlap.py

Two processes on this machine share a row of tokens. All times are of the second's processor, so that others may use the machine,
too: of attention forward and backward, and of what the process computed between the moment a message began and the moment it waited
for it. With one part that is the copying of its own keys. How long a message would take depends on the link.
"""

import argparse
import os
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from layouts import make_types
from rich.console import Console
from rich.table import Table

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules
from hsa_factory.attention import context_parallel_journey as journeys
from hsa_factory.attention.context_parallel import ContextPass


RANKS = 2
RULES = LayerRules.of(HSAConfig())


class Timed(journeys._Message):
    """Messages of which is written down how large they are and what was computed while they travelled.

    Attributes:
        seen: (megabytes, seconds) of each, in the order in which they were waited for.
    """

    seen: list[tuple[float, float]] = []

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.began = time.process_time()

    def wait(self) -> torch.Tensor:
        """Wait."""
        seconds = time.process_time() - self.began
        Timed.seen.append((max(self._sent.nbytes, self._received.nbytes) / 1e6, seconds))
        return super().wait()


def run(rank: int, meeting: str, options: argparse.Namespace) -> None:
    """In a process: time a layer for each number of parts; the last rank, which gets keys, writes down what it saw."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    journeys._Message = Timed  # type: ignore[misc]
    plan = AttentionPlan.from_inputs(make_types(options.length, options.share, True))
    size = options.length // RANKS
    generator = torch.Generator().manual_seed(rank)
    shapes = [(1, heads, size, 64) for heads in (options.heads, options.kv_heads, options.kv_heads)]
    leaves = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    context = ContextPass(plan, dist.group.WORLD)

    def step() -> tuple[float, list[tuple[float, float]]]:
        Timed.seen.clear()
        began = time.process_time()
        context.attend(*leaves, RULES, backend="blockwise").sum().backward()
        return time.process_time() - began, list(Timed.seen)

    found = []
    for parts in options.parts:
        journeys.PARTS = parts
        step()
        found.append((parts, *min(step() for _ in range(options.repeat))))
    if rank == RANKS - 1:
        torch.save(found, f"{meeting}.times")
    dist.destroy_process_group()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--share", type=float, default=0.1, help="of GLOBAL and LANDMARK tokens (%(default)s)")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeat", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        meeting = os.path.join(directory, "meeting")
        mp.spawn(run, (meeting, options), nprocs=RANKS)
        found = torch.load(f"{meeting}.times")
    table = Table(title=f"{options.length} tokens on {RANKS} ranks, {options.share:.0%} memory: times of a processor")
    for heading in ("parts", "attention, ms", "MB of each message", "computed meanwhile, ms: forward", "backward"):
        table.add_column(heading, justify="right")
    for parts, seconds, seen in found:
        times = [f"{1e3 * one:.1f}" for _, one in seen]
        sizes = ", ".join(f"{size:.2f}" for size, _ in seen[:parts])
        table.add_row(str(parts), f"{1e3 * seconds:.0f}", sizes, ", ".join(times[:parts]), ", ".join(times[parts:]))
    Console().print(table)


if __name__ == "__main__":
    main()
