"""The plots of docs/benchmarks.md, from the results: each panel shows rows of one machine and says which, if they differ."""

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator
from page_words import VARIANTS, WAYS
from results import ROOT, of_one_setting, read


IMAGES = ROOT / "docs" / "images"
SPEED_UPS, MIB = [1, 2, 5, 10, 20, 40], [5, 10, 20, 50, 100, 200, 500, 1000]


def plot_attention() -> None:
    """Plot speed-up and extra memory of attention by length."""
    rows = sorted(read("attention.csv"), key=lambda row: int(row["tokens"]))
    figure, axes = plt.subplots(2, 2, figsize=(10, 8), layout="constrained")
    axes = axes.flatten()
    figure.suptitle("Attention with HSA against causal attention, forward and backward, by length (log scales)")
    own = [row for row in rows if row["method"] == "blockwise"]
    panels = [
        (axes[0], "scattered", "memory_share", "Memory tokens one by one, NOISE's window of 50"),
        (axes[1], "runs", "memory_share", "Memory tokens in whole turns, NOISE's window of 50"),
        (axes[2], "turns", "noise_turns", "NOISE seen in turns, memory tokens one by one"),
    ]
    shown = [(*panel, of_one_setting(row for row in own if row["layout"] == panel[1])) for panel in panels]
    machines = {row["machine"] for *_, points in shown for row in points}
    for axis, _, column, title, points in shown:
        _plot_speed_ups(axis, points, column)
        setting = f"\n{points[0]['machine']}, threads: {points[0]['threads']}" if len(machines) > 1 else ""
        axis.set_title(title + setting, fontsize=10)
        axis.set(ylabel="times faster than causal attention (dotted: the limit)")
    _plot_memory(axes[3], of_one_setting(row for row in rows if row["layout"] == "scattered"))
    ticks = sorted({int(row["tokens"]) for row in shown[0][-1]})
    for axis in axes:
        _log_lengths(axis, ticks)
    top = max(axis.get_ylim()[1] for axis in axes[:3])
    for axis in axes[:3]:
        axis.set(yticks=SPEED_UPS, yticklabels=SPEED_UPS, ylim=(0.8, top), xlim=axes[0].get_xlim())
    axes[3].set(yticks=MIB, yticklabels=MIB)
    figure.savefig(IMAGES / "attention.png", dpi=110)
    plt.close(figure)


def _plot_speed_ups(axis: plt.Axes, rows: list[dict[str, str]], column: str) -> None:
    """Plot the speed-ups of one layout and their limits, a line for each value of a column."""
    for number, value in enumerate(sorted({row[column] for row in rows}, key=float)):
        points = [row for row in rows if row[column] == value]
        label = f"{float(value):.0%} memory" if column == "memory_share" else f"noise_turns {value}"
        lengths, colour = [int(row["tokens"]) for row in points], plt.cm.viridis(number / 5)
        axis.plot(lengths, [float(row["speed_up"]) for row in points], "o-", color=colour, label=label)
        axis.plot(lengths, [float(row["limit"]) for row in points], ":", color=colour)
    axis.axhline(1, color="#777777", linewidth=1)
    axis.legend(framealpha=0.9, edgecolor="none", fontsize=8, loc="upper left", borderpad=0, handlelength=1.5)


def _plot_memory(axis: plt.Axes, rows: list[dict[str, str]]) -> None:
    """Plot what each method takes beside the tensors it is given and gives."""
    names = {
        "causal": "causal, no HSA",
        "blockwise": "HSA blockwise",
        "dense": "HSA dense",
        "forks": "HSA, forks' way",
    }
    for (name, label), colour in zip(names.items(), ("#777777", "#1b9aaa", "#edae49", "#d1495b")):
        method, column = ("blockwise", "causal_extra_mib") if name == "causal" else (name, "extra_mib")
        own = [row for row in rows if row["method"] == method]
        own = [row for row in own if row["memory_share"] == "0.05"] or own
        points = {int(row["tokens"]): max(float(row[column]), 1) for row in own}
        axis.plot(points.keys(), points.values(), "o-", color=colour, label=label)
    axis.set_title("Memory at 5 % memory tokens", fontsize=10)
    axis.set(ylabel="MiB beyond q, k, v, out, gradients")
    axis.legend(frameon=False, fontsize=8)


def _log_lengths(axis: plt.Axes, ticks: list[int]) -> None:
    """Make both axes logarithmic, with the lengths along the lower one."""
    labels = [f"{tick / 1024:.3g}k" for tick in ticks]
    axis.set(xscale="log", yscale="log", xlabel="tokens", xticks=ticks, xticklabels=labels)
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def plot_one_sequence() -> None:
    """Plot tokens, time and memory of training a trajectory in one sequence and reply by reply."""
    rows = of_one_setting(read("one_sequence.csv"))
    rows = sorted((row for row in rows if row["data"] == "synthetic"), key=lambda row: int(row["trajectory_tokens"]))
    setting = f"{rows[0]['machine']}, threads: {rows[0]['threads']}, {rows[0]['clock']} time"
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    figure.suptitle(f"A training step over all replies of a trajectory, by its length ({setting}; log scales)")
    panels = (
        ("forward_tokens", "tokens through the model"),
        ("seconds", "seconds"),
        ("peak_mib", "MiB beside weights and gradients"),
    )
    for axis, (column, label) in zip(axes, panels):
        for way, colour, style in zip(WAYS, ("#1b9aaa", "#777777", "#d1495b"), ("o-", "s--", "o-")):
            own = [row for row in rows if row["way"] == way]
            points = {int(row["trajectory_tokens"]): float(row[column]) for row in own}
            name = WAYS[way][0].format(**own[0]).replace("`", "")
            axis.plot(points.keys(), points.values(), style, color=colour, label=name)
        _log_lengths(axis, sorted({int(row["trajectory_tokens"]) for row in rows}))
        axis.set(xlabel="tokens of the trajectory", ylabel=label)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:,g}")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=3, loc="outside lower center")
    figure.savefig(IMAGES / "one_sequence.png", dpi=110)
    plt.close(figure)


def plot_steps() -> None:
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
    figure.savefig(IMAGES / "sft_step.png", dpi=110)
    plt.close(figure)


def plot_decoding() -> None:
    """Plot tokens a second and the cache's memory by length of the context."""
    rows = of_one_setting(row for row in read("decode.csv") if row["measured"] == "decoding")
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
    turns = sorted({row["variant"] for row in rows if row["variant"].startswith("turns ")})
    for variant, colour in zip(turns, ("#7b2d8b", "#edae49", "#1b9aaa")):
        share = next(row["memory_share"] for row in rows if row["variant"] == variant)
        lines.append((variant, share, f"HSA, noise_turns {variant.split()[1]}, {float(share):.0%}", colour, "s--"))
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
    figure.savefig(IMAGES / "decode.png", dpi=110)
    plt.close(figure)
