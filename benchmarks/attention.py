"""HSA attention against causal attention without HSA: time, memory and the limit, side by side in one run.

    python benchmarks/attention.py                      # table on screen, benchmarks/results/attention.csv
    python benchmarks/attention.py --lengths 1024 4096  # a quick look
    python benchmarks/attention.py --lengths 16384 --shares 0.05 --threads 1 --clock cpu --output look.csv  # a busy machine

A run replaces its own cases (of the same threads, clock and machine) in the results and leaves the others.

Layouts: memory (GLOBAL and LANDMARK) scattered, or in runs of 100 tokens, with NOISE's window of 50; and NOISE seen in
turns, memory scattered: turns as long as those of real trajectories, or of 200 to 700 tokens.

A limit is the number of causal pairs over the number of visible pairs: what skipping every invisible pair would bring.
In each round `scaled_dot_product_attention(is_causal=True)` without HSA is measured right before the methods, and the
median over the rounds of the ratio to it is reported, so that a machine whose speed drifts does little harm. Methods:

- blockwise: this project's backend for everything but CUDA
- flex: this project's backend for CUDA (on CPU torch compiles its forward pass only; with --flex, it takes a while)
- dense: the whole bias through `scaled_dot_product_attention`, made once and shared by all layers
- forks: the whole bias made anew in each layer, and eager attention
"""

import argparse
import statistics
from collections.abc import Callable

import results
import torch
import torch.nn.functional as F
from layouts import SHARE_WITH_TURNS, Case, make_types, visible_pairs
from measuring import CLOCK_HELP, CLOCKS, machine, peak_mib
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hsa_factory import HSAConfig
from hsa_factory.attention import LayerRules, run_attention
from hsa_factory.attention.backends.blockwise.layout import Layout
from hsa_factory.attention.backends.flex import flex_hsa_attention


LONGEST = {"dense": 8192, "forks": 4096, "flex": 16384}  # tokens; longer rows would take gigabytes or minutes
KEYS = ("tokens", "memory_share", "layout", "noise_turns", "method", "heads", "kv_heads", "head_size")
Attend = Callable[[], torch.Tensor]
clock = CLOCKS["wall"]


def forks_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    """Attend as the patched forks do: the whole bias built in this layer, then eager attention."""
    config, length = HSAConfig(), key.shape[2]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    kinds = types[:, None, :]
    bias = torch.zeros(1, length, length)
    bias = torch.where(kinds == 1, -config.landmark_decay * distance, bias)
    bias = torch.where(kinds == 2, -config.noise_decay * distance, bias)
    bias = bias.masked_fill((kinds == 2) & (distance > config.noise_window), float("-inf"))
    bias = bias.masked_fill(distance < 0, float("-inf"))
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5 + bias[:, None]).softmax(dim=-1) @ value


def measure(attend: Attend, inputs: tuple[torch.Tensor, ...], upstream: torch.Tensor | None) -> tuple[float, float]:
    """Return the seconds of a forward pass, and of a forward and backward pass (NaN without `upstream`)."""
    start = clock()
    if upstream is None:
        with torch.no_grad():
            attend()
        return clock() - start, float("nan")
    output = attend()
    forward = clock() - start
    torch.autograd.grad(output, inputs, upstream)
    return forward, clock() - start


def extra_mib(attend: Attend, inputs: tuple[torch.Tensor, ...], upstream: torch.Tensor) -> float:
    """Return the peak memory of a forward and backward pass beyond q, k, v, the output and their gradients (Linux)."""
    peak = peak_mib(lambda: measure(attend, inputs, upstream))
    kept = sum(tensor.numel() * tensor.element_size() for tensor in (upstream, *inputs)) / 2**20
    return max(peak - kept, 0.0)


def methods(inputs: tuple[torch.Tensor, ...], case: Case, with_flex: bool) -> dict[str, tuple[Attend, bool]]:
    """Return the methods for a row: the call, and whether it has a backward pass."""
    length, rules = inputs[0].shape[2], LayerRules.of(case.config())
    plan, types = case.plan(length), make_types(length, case.share, case.is_scattered)
    calls = {"blockwise": (lambda: run_attention(*inputs, plan, rules, "blockwise")[0], True)}
    if case.noise_turns is None:  # in turns, they would cost the same
        calls["dense"] = (lambda: run_attention(*inputs, plan, rules, "dense")[0], True)
        calls["forks"] = (lambda: forks_attention(*inputs, types), True)
    if with_flex:
        leaves = tuple(tensor.detach() for tensor in inputs)
        calls["flex"] = (lambda: flex_hsa_attention(*leaves, plan, rules), False)
    return {name: call for name, call in calls.items() if length <= LONGEST.get(name, length)}


def measure_length(length: int, cases: list[Case], options: argparse.Namespace, advance: Callable) -> list:
    """Measure all methods and cases of one length."""
    generator = torch.Generator().manual_seed(0)
    heads = (options.heads, options.kv_heads, options.kv_heads)
    query, key, value = (
        torch.randn(1, number, length, options.head_size, generator=generator).requires_grad_() for number in heads
    )
    inputs, upstream = (query, key, value), torch.randn(query.shape, generator=generator)
    calls: dict[tuple[str, Case], tuple[Attend, bool]] = {}
    plan_seconds, memory = {}, {}
    for case in cases:
        start = clock()
        layout = case.plan(length).once(Layout, LayerRules.of(case.config()))
        plan_seconds[case] = clock() - start
        del layout
        is_worst = case.is_scattered and case.share == min(other.share for other in cases)
        for name, call in methods(inputs, case, options.flex).items():
            if name == "blockwise" or is_worst:  # the others do not care where the memory lies
                calls[name, case] = call

    causal: Attend = lambda: F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)
    times: dict[tuple[str, Case], list[tuple[float, ...]]] = {called: [] for called in calls}
    rounds = max(1, min(options.rounds, 2 * 32768 // length))
    memory["causal"] = extra_mib(causal, inputs, upstream)  # also warms up
    for called, (attend, has_backward) in calls.items():
        memory[called] = extra_mib(attend, inputs, upstream) if has_backward else measure(attend, inputs, None)[1]
    for _ in range(rounds):
        base = measure(causal, inputs, upstream)
        for called, (attend, has_backward) in calls.items():
            own = measure(attend, inputs, upstream if has_backward else None)
            times[called].append((*own, *(a / b for a, b in zip(base, own)), base[1]))
            advance(1 / rounds / len(calls))

    records = []
    for (name, case), rows in times.items():
        forward, total, forward_speed_up, speed_up, base = (statistics.median(column) for column in zip(*rows))
        limit = length * (length + 1) / 2 / visible_pairs(case.plan(length), LayerRules.of(case.config()))
        records.append(
            {
                "tokens": length,
                "memory_share": case.share,
                "layout": case.layout,
                "noise_turns": case.noise_turns,
                "method": name,
                "forward_seconds": round(forward, 5),
                "seconds": round(total, 5),
                "causal_seconds": round(base, 5),
                "forward_speed_up": round(forward_speed_up, 2),
                "speed_up": round(speed_up, 2),
                "limit": round(limit, 2),
                "extra_mib": round(memory[name, case], 1),
                "causal_extra_mib": round(memory["causal"], 1),
                "plan_seconds": round(plan_seconds[case], 5),
                "heads": options.heads,
                "kv_heads": options.kv_heads,
                "head_size": options.head_size,
                "rounds": rounds,
                "threads": options.threads,
                "clock": options.clock,
                "machine": machine(),
            }
        )
    return records


def main() -> None:
    """Run all measurements."""
    global clock
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lengths = [1024, 2048, 4096, 8192, 16384, 32768, 65536]
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2, 0.5])
    layouts = ["runs", "scattered", "turns", "synthetic turns"]
    parser.add_argument("--layouts", nargs="+", default=layouts, choices=layouts)
    parser.add_argument("--turns", type=int, nargs="+", default=[0, 1, 4], help="noise_turns (%(default)s)")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="fewer at 64k tokens (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help=CLOCK_HELP)
    parser.add_argument("--flex", action="store_true", help="compiled flex attention too, forward only")
    parser.add_argument("--output", default="attention.csv", help="name in benchmarks/results (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = CLOCKS[options.clock]
    cases = [
        case
        for layout in options.layouts
        for case in (
            [Case(SHARE_WITH_TURNS, layout, turns) for turns in options.turns]
            if "turns" in layout
            else [Case(share, layout) for share in options.shares]
        )
    ]

    records: list[dict] = []
    with Progress() as progress:
        task = progress.add_task("measuring", total=sum(options.lengths))
        for length in options.lengths:
            records += measure_length(length, cases, options, lambda part: progress.advance(task, part * length))  # noqa: B023
            results.merge(options.output, records, KEYS)

    setting = f"{options.threads} threads, {options.clock} clock, {machine()}"
    title = f"batch 1, {options.heads} heads of {options.head_size}, {options.kv_heads} key/value heads, float32"
    table = Table(title=f"{title}, {setting}")
    columns = (
        *("tokens", "memory", "layout", "noise_turns", "method", "ms", "speed-up", "forward", "limit", "of it"),
        *("extra MiB", "plan, ms"),
    )
    for heading in columns:
        table.add_column(heading, justify="right")
    for record in records:
        table.add_row(
            f"{record['tokens']:,}",
            f"{record['memory_share']:.0%}",
            record["layout"],
            "" if record["noise_turns"] is None else str(record["noise_turns"]),
            record["method"],
            f"{record['seconds'] * 1000:.0f}",
            f"{record['speed_up']:.2f}",
            f"{record['forward_speed_up']:.2f}",
            f"{record['limit']:.1f}",
            f"{record['speed_up'] / record['limit']:.0%}",
            f"{record['extra_mib']:.0f}",
            f"{record['plan_seconds'] * 1000:.1f}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
