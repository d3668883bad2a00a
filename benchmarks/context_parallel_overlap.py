"""What it saves that keys travel while others attend: one layer's attention on a rank, by how fast the link between ranks is.

    python benchmarks/context_parallel_overlap.py

Two processes on this machine share a row of tokens. The link is not there: a message arrives when one of its size would have come over a
link of that speed, one after the other, and no earlier; to wait takes no processor. Times are the smallest of all repetitions,
forward and backward. `parts` is into how many parts the heads are divided: with 1 nothing overlaps.
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


class Link(journeys._Message):
    """Messages that take their time.

    Attributes:
        megabytes: A second; 0: as fast as the machine.
        free: When the link has done all that it was given.
    """

    megabytes, free = 0.0, 0.0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        size = max(self._sent.nbytes, self._received.nbytes) / 1e6
        took = size / Link.megabytes if Link.megabytes else 0.0
        Link.free = self.arrives = max(Link.free, time.perf_counter()) + took

    def wait(self) -> torch.Tensor:
        """Wait for the link, too."""
        received = super().wait()
        time.sleep(max(0.0, self.arrives - time.perf_counter()))
        return received


def run(rank: int, meeting: str, options: argparse.Namespace) -> None:
    """In a process: time a layer for each speed and number of parts; the last rank, which gets keys, writes its times down."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    journeys._Message = Link  # type: ignore[misc]
    plan = AttentionPlan.from_inputs(make_types(options.length, options.share, True))
    size = options.length // RANKS
    generator = torch.Generator().manual_seed(rank)
    shapes = [(1, heads, size, 64) for heads in (options.heads, options.kv_heads, options.kv_heads)]
    leaves = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    context = ContextPass(plan, dist.group.WORLD)

    def step() -> tuple[float, float]:
        dist.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        context.attend(*leaves, RULES, backend="blockwise").sum().backward()
        return time.perf_counter() - wall, time.process_time() - cpu

    found = []
    for megabytes in options.megabytes:
        for parts in options.parts:
            Link.megabytes, journeys.PARTS = megabytes, parts
            step()
            walls, cpus = zip(*(step() for _ in range(options.repeat)), strict=True)
            found.append((megabytes, parts, min(walls), min(cpus)))
    if rank == RANKS - 1:
        torch.save((found, context.traffic().bytes_received), f"{meeting}.times")
    dist.destroy_process_group()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--share", type=float, default=0.1, help="of GLOBAL and LANDMARK tokens (%(default)s)")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[0, 30, 10], help="a second, of the link")
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeat", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        meeting = os.path.join(directory, "meeting")
        mp.spawn(run, (meeting, options), nprocs=RANKS)
        found, received = torch.load(f"{meeting}.times")
    table = Table(title=f"{options.length} tokens on {RANKS} ranks, {received / 1e6:.2f} MB a layer and direction")
    for heading in ("link, MB/s", "message, ms", "parts", "forward and backward, ms", "of a processor, ms"):
        table.add_column(heading, justify="right")
    for megabytes, parts, wall, cpu in found:
        speed, message = ("", "") if not megabytes else (f"{megabytes:g}", f"{received / megabytes / 1e3:.0f}")
        table.add_row(speed, message, str(parts), f"{1e3 * wall:.0f}", f"{1e3 * cpu:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
