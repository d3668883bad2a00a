"""Make the READMEs' tables and the plots from the committed results.

python benchmarks/report.py
"""

import csv
import os
import platform
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt


ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
VARIANTS = {
    "plain": ("plain LLaMA-Factory", "原版 LLaMA-Factory"),
    "hsa": ("HSA, this project", "本项目的 HSA"),
    "forks": ("HSA, the forks' way", "旧分支的 HSA"),
}
TEXTS = {
    "README.md": {
        "language": 0,
        "step": "One LLaMA-Factory SFT step of the tiny Qwen3, batch of 1, one CPU thread ({machine}; "
        "`python benchmarks/sft_step.py`):",
        "head": ("tokens", "variant", "ms a step", "time / plain", "forks' way / this", "memory of the step, MiB"),
        "data": "Preparing {samples} samples ({tokens} tokens) with types takes **{ratio:.2f}×** the processor time of "
        "plain LLaMA-Factory (`python benchmarks/preprocessing.py`).",
    },
    "README_zh.md": {
        "language": 1,
        "step": "微型 Qwen3 的一个 LLaMA-Factory SFT 训练步，批大小 1，单 CPU 线程（{machine}；"
        "`python benchmarks/sft_step.py`）：",
        "head": ("token 数", "方式", "每步毫秒", "耗时 / 原版", "旧分支 / 本行", "训练步内存，MiB"),
        "data": "带语义类型预处理 {samples} 条样本（{tokens} 个 token）的处理器时间是原版 LLaMA-Factory 的 "
        "**{ratio:.2f} 倍**（`python benchmarks/preprocessing.py`）。",
    },
}


def read(name: str) -> list[dict[str, str]]:
    """Read one CSV of results."""
    with open(RESULTS / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(name: str, records: list[dict[str, Any]]) -> None:
    """Write one CSV of results."""
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def tables(texts: dict) -> str:
    """Return the Markdown of one README."""
    steps, data = read("sft_step.csv"), read("preprocessing.csv")[0]
    lines = [texts["step"].format(machine=steps[0]["machine"]), ""]
    lines += ["| " + " | ".join(texts["head"]) + " |", "|--:|:--|" + "--:|" * 4]
    for row in steps:
        values = (
            f"{int(row['tokens']):,}",
            VARIANTS[row["variant"]][texts["language"]],
            f"{float(row['seconds']) * 1000:.0f}",
            f"{float(row['time_over_plain']):.2f}",
            f"{float(row['forks_over_this']):.1f}",
            f"{float(row['peak_mib']):.0f}",
        )
        lines.append("| " + " | ".join(values) + " |")
    ratio = float(data["typed_over_plain"])
    lines += ["", "![](docs/images/sft_step.png)", ""]
    lines.append(
        texts["data"].format(samples=f"{int(data['samples']):,}", tokens=f"{int(data['tokens']):,}", ratio=ratio)
    )
    return "\n".join(lines)


def plot() -> None:
    """Plot time and memory of a training step."""
    rows = read("sft_step.csv")
    lengths = sorted({int(row["tokens"]) for row in rows})
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, column, factor, label in (
        (axes[0], "seconds", 1000, "ms a step"),
        (axes[1], "peak_mib", 1, "memory of the step, MiB"),
    ):
        for variant, colour in zip(VARIANTS, ("#777777", "#1b9aaa", "#d1495b")):
            values = [float(row[column]) * factor for row in rows if row["variant"] == variant]
            axis.plot(lengths, values, marker="o", color=colour, label=VARIANTS[variant][0])
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label, xticks=lengths, xticklabels=lengths)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(ROOT / "docs" / "images" / "sft_step.png", dpi=110)


def machine() -> str:
    """Name this machine's processor in a few words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"


def main() -> None:
    """Write everything."""
    plot()
    for name, texts in TEXTS.items():
        path = ROOT / name
        before, _, rest = path.read_text(encoding="utf-8").partition(START)
        _, _, after = rest.partition(END)
        path.write_text(f"{before}{START}\n{tables(texts)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
