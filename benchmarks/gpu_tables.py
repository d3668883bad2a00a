"""The tables of docs/benchmarks.md of what was measured on GPUs, in Markdown, from the results."""

from pathlib import Path

from results import RESULTS, read


KERNELS = ("triton", "flex")


def gpu_tables(texts: dict) -> list[str]:
    """Return the Markdown lines of attention and training steps on each GPU that was measured, or that none was."""
    lines = []
    for path in sorted((RESULTS / "gpu").glob("*/attention.csv")):
        rows = [row for row in read(path) if row["status"] == "ok"]
        for method in KERNELS:
            own = [row for row in rows if row["method"] == method and row["speed_up"]]
            if own:
                lines += [*([""] if lines else []), *gpu_table(texts, rows, own)]
        lines += steps_table(texts, path.parent)
    return lines or [texts["no_gpu"]]


def gpu_table(texts: dict, rows: list[dict[str, str]], own: list[dict[str, str]]) -> list[str]:
    """Return the Markdown lines of one backend on one GPU."""
    cases = sorted(
        {(row["noise_turns"], row["memory_share"]) for row in own}, key=lambda case: (case[0], float(case[1]))
    )
    names = [texts["gpu_turns"].format(turns) if turns else f"{float(share):.0%}" for turns, share in cases]
    *first, plan = texts["gpu_head"]
    heads = (*first, *names, plan)
    lines = [texts["gpu"].format(**own[0]), "", "| " + " | ".join(heads) + " |", "|" + "--:|" * len(heads)]
    for tokens, head_size in sorted({(int(row["tokens"]), int(row["head_size"])) for row in own}):
        all_here = [row for row in rows if (row["tokens"], row["head_size"]) == (str(tokens), str(head_size))]
        here = [row for row in own if row in all_here]
        found = {(row["noise_turns"], row["memory_share"]): row for row in here}
        causal = {row["method"]: f"{float(row['ms']):,.2f}" for row in all_here if row["method"].startswith("causal")}
        cells = [f"{tokens:,}", str(head_size), causal["causal, flash"], causal.get("causal, torch's choice", "")]
        for case in cases:
            row = found.get(case)
            cells.append(
                f"{float(row['speed_up']):.1f}× ({float(row['limit']):.1f})" if row and row["speed_up"] else ""
            )
        cells.append(f"{max(float(row['plan_ms']) for row in found.values()):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def steps_table(texts: dict, directory: Path) -> list[str]:
    """Return the Markdown lines of a GPU's training steps; none if none were measured."""
    path = directory / "training.csv"
    rows = [row for row in read(path) if row["status"] == "ok"] if path.is_file() else []
    found = {(row["model"], int(row["tokens"]), row["variant"]): row for row in rows}
    cases = sorted({(model, tokens) for model, tokens, variant in found if variant != "plain"})
    if not cases:
        return []
    heads = texts["gpu_steps_head"]
    lines = ["", texts["gpu_steps"].format(**rows[0]), "", "| " + " | ".join(heads) + " |", "|:--|" + "--:|" * 4]
    for model, tokens in cases:
        over = [found.get((model, tokens, variant), {}).get("over_plain") for variant in ("window 50", "turns 1")]
        plain = found.get((model, tokens, "plain"), {}).get("seconds")
        cells = (model, f"{tokens:,}", f"{float(plain):.3f}" if plain else "")
        lines.append("| " + " | ".join((*cells, *(f"{float(ratio):.2f}" if ratio else "" for ratio in over))) + " |")
    return lines
