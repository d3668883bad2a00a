"""The tables of docs/benchmarks.md of what was measured on GPUs, in Markdown, from the results."""

from results import RESULTS, read


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
