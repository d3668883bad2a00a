"""One LLaMA-Factory SFT step with and without HSA: time and peak memory, side by side in one run.

    python benchmarks/sft_step.py            # table on screen, benchmarks/results/sft_step.csv

Variants: plain LLaMA-Factory (sdpa), HSA of this project, and the forks' way: an N×N bias rebuilt in every layer and
added in eager attention. Each measurement is a process of its own that runs the real `run_exp`; the variants take
turns, and the median over rounds and steps is reported.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


VARIANTS = ("plain", "hsa", "forks")
TURN_TOKENS = 100  # every tenth turn is a key event


def make_data(directory: Path, length: int) -> None:
    """Write a model, and trajectories that are longer than `length` tokens."""
    from hsa_factory import tiny

    words = [f"go to place {i % 17} and look at thing {i % 13}" for i in range(40)]
    tiny.save_tiny("qwen3", directory / "model", words)
    sentence = " ".join(words)
    messages = [{"role": "user", "content": "Find the cup.", "semantic_type": "GLOBAL"}]
    for turn in range(1 + 2 * length // TURN_TOKENS):
        kind = "LANDMARK" if turn % 10 == 0 else "NOISE"
        role = "user" if len(messages) % 2 == 0 else "assistant"
        messages.append({"role": role, "content": sentence[: 3 * TURN_TOKENS], "semantic_type": kind})
    messages = messages[: len(messages) // 2 * 2]
    (directory / "data.json").write_text(json.dumps([{"messages": messages}] * 4), encoding="utf-8")
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    tags["semantic_tag"] = "semantic_type"
    info = {"data": {"file_name": "data.json", "formatting": "sharegpt", "columns": {"messages": "messages"}}}
    info["data"]["tags"] = tags
    (directory / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


def forks_attention(query: Any, key: Any, value: Any, plan: Any, scale: float, **_: Any) -> tuple[Any, None]:
    """Attend as the patched forks do: the whole bias built anew in this layer, then eager attention."""
    import torch

    length = key.shape[2]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    types = plan.semantic_ids[:, None, :]
    bias = torch.zeros(query.shape[0], length, length)
    bias = torch.where(types == 1, -plan.config.landmark_decay * distance, bias)
    bias = torch.where(types == 2, -plan.config.noise_decay * distance, bias)
    bias = bias.masked_fill((types == 2) & (distance > plan.config.noise_window), float("-inf"))
    bias = bias.masked_fill(distance < 0, float("-inf"))
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    weights = (query @ key.transpose(2, 3) * scale + bias[:, None]).softmax(dim=-1)
    return weights @ value, None


def measure(variant: str, directory: Path, length: int, steps: int) -> dict[str, float]:
    """Train for some steps in this process; return the median seconds a step and the peak memory of the steps."""
    import contextlib

    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    import hsa_factory.models.attention_interface as interface
    from hsa_factory import HSAConfig
    from hsa_factory.llamafactory import integrate

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.resident = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not self.seconds:
                self.resident = _resident_mib()
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.start)

    clock = Clock()
    args = {
        "model_name_or_path": str(directory / "model"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "dataset": "data",
        "dataset_dir": str(directory),
        "template": "qwen3_nothink",
        "cutoff_len": length,
        "output_dir": str(directory / f"out_{variant}"),
        "overwrite_output_dir": True,
        "overwrite_cache": True,
        "per_device_train_batch_size": 1,
        "max_steps": steps,
        "save_strategy": "no",
        "report_to": "none",
        "flash_attn": "sdpa",
    }
    if variant == "forks":
        interface.run_attention = lambda q, k, v, plan, scale=None, **more: forks_attention(q, k, v, plan, scale)
    with contextlib.nullcontext() if variant == "plain" else integrate(HSAConfig()):
        run_exp(args, callbacks=[clock])

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(clock.seconds[1:]), "peak_mib": max(peak - clock.resident, 0.0)}


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="more only on an idle machine (%(default)s)")
    parser.add_argument(
        "--worker", nargs=4, metavar=("VARIANT", "DIRECTORY", "LENGTH", "STEPS"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.worker:
        variant, directory, length, steps = options.worker
        result = measure(variant, Path(directory), int(length), int(steps))
        print("RESULT " + json.dumps(result))
        return

    import results
    from rich.console import Console
    from rich.table import Table

    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "LLAMAFACTORY_VERBOSITY": "ERROR"}
    console = Console(width=110)
    table = Table(title="One LLaMA-Factory SFT step, tiny Qwen3, batch 1, CPU")
    for heading in ("tokens", "variant", "ms a step", "time / plain", "forks' way / this", "peak MiB"):
        table.add_column(heading, justify="right")

    records = []
    for length in options.lengths:
        measured: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
        with tempfile.TemporaryDirectory() as directory:
            make_data(Path(directory), length)
            for _ in range(options.rounds):
                for variant in VARIANTS:
                    command = [sys.executable, __file__, "--worker", variant, directory, str(length)]
                    output = subprocess.run(
                        [*command, str(options.steps)], env=environment, check=True, capture_output=True, text=True
                    ).stdout
                    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
                    measured[variant].append(json.loads(line.removeprefix("RESULT ")))

        seconds = {name: statistics.median(item["seconds"] for item in items) for name, items in measured.items()}
        peak = {name: statistics.median(item["peak_mib"] for item in items) for name, items in measured.items()}
        for variant in VARIANTS:
            record = {
                "tokens": length,
                "variant": variant,
                "seconds": round(seconds[variant], 4),
                "time_over_plain": round(seconds[variant] / seconds["plain"], 3),
                "forks_over_this": round(seconds["forks"] / seconds[variant], 2),
                "peak_mib": round(peak[variant], 1),
                "threads": options.threads,
                "machine": results.machine(),
            }
            records.append(record)
            table.add_row(
                f"{length:,}",
                variant,
                f"{seconds[variant] * 1000:.0f}",
                f"{record['time_over_plain']:.2f}",
                f"{record['forks_over_this']:.2f}",
                f"{peak[variant]:.0f}",
            )

    results.write("sft_step.csv", records)
    console.print(table)


if __name__ == "__main__":
    main()
