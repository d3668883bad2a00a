"""Make the tables of docs/benchmarks.md (and of its Chinese twin) and the plots from the committed results.

python benchmarks/report.py
"""

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator
from results import RESULTS, ROOT, read


START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
VARIANTS = {
    "plain": ("plain LLaMA-Factory", "原版 LLaMA-Factory"),
    "hsa": ("HSA, this project", "本项目的 HSA"),
    "forks": ("HSA, the forks' way", "旧 fork 的 HSA"),
}
TEXTS = {
    "docs/benchmarks.md": {
        "language": 0,
        "plots": (
            "Time and memory of a training step by length",
            "Speed-up and memory of attention by length",
            "Tokens a second and memory of the cache by length",
        ),
        "step": "One LLaMA-Factory SFT step of the tiny Qwen3, batch of 1, one CPU thread ({machine}; "
        "`python benchmarks/sft_step.py`):",
        "head": ("tokens", "variant", "ms a step", "time / plain", "forks' way / this", "memory of the step, MiB"),
        "attention": "Attention, forward and backward, float32, batch of 1, {heads} heads of {head_size}, {kv_heads} key/value "
        "heads ({machine}; `python benchmarks/attention.py`): how many times faster than causal "
        "`scaled_dot_product_attention` without HSA, by the share of GLOBAL and LANDMARK tokens; in brackets the limit, "
        "causal pairs over visible pairs. Tokens of a type scattered one by one, the worst case of a layout:",
        "attention_head": ("tokens", "causal, ms", "extra memory, MiB (causal)"),
        "model": "A training step of a Qwen3 of 2 layers, hidden size {hidden}, HSA on over HSA off "
        "(`python benchmarks/model_step.py`):",
        "model_head": ("tokens", "HSA off, ms", "HSA on, ms", "on / off"),
        "decode": "Greedy decoding with a full cache, HSA with eviction against plain transformers ({machine}; "
        "`python benchmarks/decode.py`); 2 to 20 % of the tokens GLOBAL or LANDMARK:",
        "decode_head": (
            "model",
            "tokens",
            "memory tokens",
            "plain, tokens/s",
            "HSA, tokens/s",
            "HSA / plain",
            "cache / plain",
        ),
        "parameters": "{:.1f}M parameters",
        "data": "Preparing {samples} samples ({tokens} tokens) with types takes **{ratio:.2f}×** the processor time of "
        "plain LLaMA-Factory (`python benchmarks/preprocessing.py`).",
        "no_gpu": "On a GPU: not measured yet. `python benchmarks/gpu.py` measures it.",
        "gpu": "Attention on {device}, torch {torch}: bfloat16, forward and backward, batch of 1, the `flex` backend "
        "(`python benchmarks/gpu.py`): how many times faster than causal flash attention without HSA; in brackets the limit.",
        "gpu_head": ("tokens", "head size", "causal, ms", "plan, ms"),
        "gpu_turns": "5%, turns {}",
    },
    "docs/benchmarks_zh.md": {
        "language": 1,
        "plots": (
            "训练步的耗时与内存随长度的变化",
            "注意力的加速比与内存随长度的变化",
            "解码速度与缓存大小随长度的变化",
        ),
        "step": "微型 Qwen3 的一个 LLaMA-Factory SFT 训练步，批大小 1，单 CPU 线程（{machine}；"
        "`python benchmarks/sft_step.py`）：",
        "head": ("token 数", "方式", "每步毫秒", "耗时 / 原版", "旧 fork / 本行", "训练步内存，MiB"),
        "attention": "注意力前向 + 反向，float32，批大小 1，{heads} 个 {head_size} 维头，{kv_heads} 个 key/value 头（{machine}；"
        "`python benchmarks/attention.py`）：相对不用 HSA 的因果 `scaled_dot_product_attention` 快多少倍，按 GLOBAL 与 "
        "LANDMARK token 的占比；括号内是理论上限，即因果对数 / 可见对数。各类型的 token 逐个打散，是最不利的排布：",
        "attention_head": ("token 数", "因果注意力，毫秒", "额外内存，MiB（因果）"),
        "model": "2 层 Qwen3（hidden size {hidden}）的一个训练步，开启 HSA 与关闭 HSA 之比（`python benchmarks/model_step.py`）：",
        "model_head": ("token 数", "关闭，毫秒", "开启，毫秒", "开 / 关"),
        "decode": "缓存已满时的贪心解码，带逐出的 HSA 与原版 transformers 之比（{machine}；`python benchmarks/decode.py`）；"
        "2 % 到 20 % 的 token 是 GLOBAL 或 LANDMARK：",
        "decode_head": (
            "模型",
            "token 数",
            "记忆 token",
            "原版，token/s",
            "HSA，token/s",
            "HSA / 原版",
            "缓存 / 原版",
        ),
        "parameters": "{:.1f}M 参数",
        "data": "带语义类型预处理 {samples} 条样本（{tokens} 个 token）的处理器时间是原版 LLaMA-Factory 的 "
        "**{ratio:.2f} 倍**（`python benchmarks/preprocessing.py`）。",
        "no_gpu": "GPU 尚未测量；用 `python benchmarks/gpu.py` 测量。",
        "gpu": "{device} 上的注意力，torch {torch}：bfloat16，前向 + 反向，批大小 1，`flex` 后端（`python benchmarks/gpu.py`）："
        "相对不用 HSA 的因果 flash attention 快多少倍；括号内是理论上限。",
        "gpu_head": ("token 数", "头维度", "因果注意力，毫秒", "plan，毫秒"),
        "gpu_turns": "5%，turns {}",
    },
}


def tables(texts: dict) -> str:
    """Return the Markdown between the markers of one page."""
    steps, data = read("sft_step.csv"), read("preprocessing.csv")[0]
    step_plot, attention_plot, decode_plot = texts["plots"]
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
    lines += [
        "",
        f"![{step_plot}](images/sft_step.png)",
        "",
        *attention_table(texts),
        "",
        f"![{attention_plot}](images/attention.png)",
        "",
    ]
    lines += [*model_table(texts), "", *decode_table(texts), "", f"![{decode_plot}](images/decode.png)", ""]
    ratio = float(data["typed_over_plain"])
    lines.append(
        texts["data"].format(samples=f"{int(data['samples']):,}", tokens=f"{int(data['tokens']):,}", ratio=ratio)
    )
    return "\n".join([*lines, "", *gpu_tables(texts)])


def gpu_tables(texts: dict) -> list[str]:
    """Return the Markdown lines of attention on each GPU that was measured, or that none was."""
    lines = []
    for path in sorted((RESULTS / "gpu").glob("*/attention.csv")):
        rows = [row for row in read(path) if row["status"] == "ok"]
        flex = [row for row in rows if row["method"] == "flex" and row["speed_up"]]
        if flex:
            lines += [*([""] if lines else []), *gpu_table(texts, rows, flex)]
    return lines or [texts["no_gpu"]]


def gpu_table(texts: dict, rows: list[dict[str, str]], flex: list[dict[str, str]]) -> list[str]:
    """Return the Markdown lines of one GPU."""
    cases = sorted(
        {(row["noise_turns"], row["memory_share"]) for row in flex}, key=lambda case: (case[0], float(case[1]))
    )
    names = [texts["gpu_turns"].format(turns) if turns else f"{float(share):.0%}" for turns, share in cases]
    length, size, causal, plan = texts["gpu_head"]
    heads = (length, size, causal, *names, plan)
    lines = [texts["gpu"].format(**flex[0]), "", "| " + " | ".join(heads) + " |", "|" + "--:|" * len(heads)]
    for tokens, head_size in sorted({(int(row["tokens"]), int(row["head_size"])) for row in flex}):
        own = [row for row in rows if (row["tokens"], row["head_size"]) == (str(tokens), str(head_size))]
        found = {(row["noise_turns"], row["memory_share"]): row for row in own if row["method"] == "flex"}
        base = next(row for row in own if row["method"] == "causal, flash")
        cells = [f"{tokens:,}", str(head_size), f"{float(base['ms']):,.2f}"]
        for case in cases:
            row = found.get(case)
            cells.append(
                f"{float(row['speed_up']):.1f}× ({float(row['limit']):.1f})" if row and row["speed_up"] else ""
            )
        cells.append(f"{max(float(row['plan_ms']) for row in found.values()):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def attention_table(texts: dict) -> list[str]:
    """Return the Markdown lines of the speed-ups of blockwise attention by length and share."""
    rows = [row for row in read("attention.csv") if row["method"] == "blockwise" and row["layout"] == "scattered"]
    shares = sorted({row["memory_share"] for row in rows}, key=float)
    length_name, causal, memory = texts["attention_head"]
    heads = (length_name, causal, *(f"{float(share):.0%}" for share in shares), memory)
    lines = [texts["attention"].format(**rows[0]), "", "| " + " | ".join(heads) + " |", "|" + "--:|" * len(heads)]
    for length in sorted({int(row["tokens"]) for row in rows}):
        own = {row["memory_share"]: row for row in rows if int(row["tokens"]) == length}
        first, usual = next(iter(own.values())), own.get("0.05", next(iter(own.values())))
        cells = [f"{length:,}", f"{float(first['causal_seconds']) * 1000:,.0f}"]
        for share in shares:
            row = own.get(share)
            cells.append(f"{float(row['speed_up']):.1f}× ({float(row['limit']):.1f})" if row else "")
        cells.append(f"{float(usual['extra_mib']):.0f} ({float(usual['causal_extra_mib']):.0f})")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def model_table(texts: dict) -> list[str]:
    """Return the Markdown lines of the training steps of a small model."""
    rows = read("model_step.csv")
    heads = texts["model_head"]
    lines = [
        texts["model"].format(hidden=rows[0]["hidden_size"]),
        "",
        "| " + " | ".join(heads) + " |",
        "|--:" * 4 + "|",
    ]
    for row in rows:
        off, on = (f"{float(row[name]) * 1000:,.0f}" for name in ("off_seconds", "on_seconds"))
        lines.append(f"| {int(row['tokens']):,} | {off} | {on} | {float(row['on_over_off']):.2f} |")
    return lines


def decode_table(texts: dict) -> list[str]:
    """Return the Markdown lines of decoding with eviction and without HSA."""
    rows = [row for row in read("decode.csv") if row["measured"] == "decoding"]
    heads = texts["decode_head"]
    lines = [texts["decode"].format(**rows[0]), "", "| " + " | ".join(heads) + " |", "|:--" + "|--:" * 6 + "|"]
    plain = {point(row): row for row in rows if row["variant"] == "plain"}
    for row in rows:
        if row["variant"] == "hsa":
            own, other = float(row["tokens_per_second"]), float(plain[point(row)]["tokens_per_second"])
            cells = (
                texts["parameters"].format(int(row["parameters"]) / 1e6),
                f"{int(row['tokens']):,}",
                f"{float(row['memory_share']):.0%}",
                f"{other:,.0f}" if other >= 100 else f"{other:.3g}",
                f"{own:,.0f}" if own >= 100 else f"{own:.3g}",
                f"{own / other:.2f}",
                f"{float(row['bytes_of_plain']):.3f}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def point(row: dict[str, str]) -> tuple[str, ...]:
    """Return what variants that were measured side by side have in common."""
    return row["model"], row["tokens"], row["memory_share"]


def plot_attention() -> None:
    """Plot speed-up and extra memory of attention by length."""
    rows = sorted(read("attention.csv"), key=lambda row: int(row["tokens"]))
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    figure.suptitle("Attention with HSA against causal attention, forward and backward, by length (log scales)")
    for axis, layout, placed in zip(axes, ("scattered", "runs"), ("one by one", "in whole turns")):
        own = [row for row in rows if row["method"] == "blockwise" and row["layout"] == layout]
        for number, share in enumerate(sorted({row["memory_share"] for row in own}, key=float)):
            points = [row for row in own if row["memory_share"] == share]
            lengths, colour = [int(row["tokens"]) for row in points], plt.cm.viridis(number / 5)
            axis.plot(
                lengths, [float(row["speed_up"]) for row in points], "o-", color=colour, label=f"{float(share):.0%}"
            )
            axis.plot(lengths, [float(row["limit"]) for row in points], ":", color=colour)
        axis.axhline(1, color="#777777", linewidth=1)
        axis.set(title=f"Speed-up, memory tokens {placed}", ylabel="times faster than causal attention")
    handles, labels = axes[0].get_legend_handles_labels()
    title = "memory tokens: share of GLOBAL and LANDMARK (dotted: the limit)"
    figure.legend(handles, labels, frameon=False, title=title, ncols=5, loc="outside lower left")
    names = {
        "causal": "causal, no HSA",
        "blockwise": "HSA blockwise",
        "dense": "HSA dense",
        "forks": "HSA, forks' way",
    }
    for (name, label), colour in zip(names.items(), ("#777777", "#1b9aaa", "#edae49", "#d1495b")):
        method, column = ("blockwise", "causal_extra_mib") if name == "causal" else (name, "extra_mib")
        own = [row for row in rows if row["method"] == method and row["layout"] == "scattered"]
        own = [row for row in own if row["memory_share"] == "0.05"] or own
        points = {int(row["tokens"]): max(float(row[column]), 1) for row in own}
        axes[2].plot(points.keys(), points.values(), "o-", color=colour, label=label)
    axes[2].set(title="MiB at 5 % memory tokens", ylabel="MiB beyond q, k, v, out, gradients")
    axes[2].legend(frameon=False)
    ticks = sorted({int(row["tokens"]) for row in rows})
    for axis in axes:
        labels = [f"{tick // 1024}k" for tick in ticks]
        axis.set(xscale="log", yscale="log", xlabel="tokens", xticks=ticks, xticklabels=labels)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    top = max(axis.get_ylim()[1] for axis in axes[:2])
    for axis, values in zip(
        axes, ([1, 2, 5, 10, 20, 40], [1, 2, 5, 10, 20, 40], [5, 10, 20, 50, 100, 200, 500, 1000])
    ):
        axis.set(yticks=values, yticklabels=values)
    for axis in axes[:2]:
        axis.set(ylim=(0.8, top))
    figure.savefig(ROOT / "docs" / "images" / "attention.png", dpi=110)


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


def plot_decoding() -> None:
    """Plot tokens a second and the cache's memory by length of the context."""
    rows = [row for row in read("decode.csv") if row["measured"] == "decoding"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    size = (9, 3.2 * len(models) + 0.4)
    figure, axes = plt.subplots(len(models), 2, figsize=size, layout="constrained", squeeze=False)
    figure.suptitle("Greedy decoding with a cache, by the length of the context (log scales)")
    lengths = sorted({int(row["tokens"]) for row in rows})
    shares = sorted({row["memory_share"] for row in rows}, key=float)
    lines = [("plain", shares[0], "transformers, no HSA", "#777777", "o-")]
    lines += [("no eviction", shares[0], "HSA, nothing dropped", "#d1495b", "o-")]
    lines += [
        ("hsa", share, f"HSA, {float(share):.0%} GLOBAL, LANDMARK", plt.cm.viridis(number / 4), "o-")
        for number, share in enumerate(shares)
    ]
    for model, pair in zip(models, axes):
        parameters = next(int(row["parameters"]) for row in rows if row["model"] == model)
        for axis, column, factor, title, label in (
            (pair[0], "tokens_per_second", 1, "Speed", "tokens a second"),
            (pair[1], "cache_bytes", 2**-20, "Cache", "MiB of keys and values"),
        ):
            for variant, share, name, colour, style in lines:
                own = [row for row in rows if (row["model"], row["variant"]) == (model, variant)]
                own = sorted((row for row in own if row["memory_share"] == share), key=lambda row: int(row["tokens"]))
                points = {int(row["tokens"]): float(row[column]) * factor for row in own}
                axis.plot(points.keys(), points.values(), style, color=colour, label=name)
            ticks = [f"{length // 1024}k" for length in lengths]
            axis.set(xscale="log", yscale="log", xlabel="tokens seen", ylabel=label, xticks=lengths, xticklabels=ticks)
            axis.set_title(f"{title}, Qwen3 of {parameters / 1e6:.2g}M parameters")
            axis.minorticks_off()
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.grid(alpha=0.3)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(ROOT / "docs" / "images" / "decode.png", dpi=110)


def write_tables() -> None:
    """Write the tables between the markers of each page."""
    for name, texts in TEXTS.items():
        path = ROOT / name
        before, _, rest = path.read_text(encoding="utf-8").partition(START)
        _, _, after = rest.partition(END)
        path.write_text(f"{before}{START}\n{tables(texts)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Write everything."""
    plot()
    plot_decoding()
    plot_attention()
    write_tables()


if __name__ == "__main__":
    main()
