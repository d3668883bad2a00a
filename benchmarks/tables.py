"""The tables of docs/benchmarks.md, in Markdown, from the results."""

from gpu_tables import gpu_tables
from page_words import TURN_LAYOUTS, VARIANTS, WAYS
from results import of_one_setting, read, setting


TURNS = "turns "  # before their number: variants of decoding


def tables(texts: dict) -> str:
    """Return the Markdown between the markers of one page."""
    steps, data = read("sft_step.csv"), read("preprocessing.csv")[0]
    step_plot, attention_plot, decode_plot, sequence_plot = texts["plots"]
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
    lines += ["", f"![{step_plot}](images/sft_step.png)", "", *sequence_table(texts)]
    lines += ["", f"![{sequence_plot}](images/one_sequence.png)", "", *attention_table(texts)]
    lines += ["", *turns_table(texts), "", f"![{attention_plot}](images/attention.png)", ""]
    lines += [*model_table(texts), "", *decode_table(texts), "", *decode_turns_table(texts)]
    lines += ["", f"![{decode_plot}](images/decode.png)", ""]
    ratios = {mode: float(data[f"{mode}_over_plain"]) for mode in ("typed", "turns", "ruled")}
    samples, tokens = f"{int(data['samples']):,}", f"{int(data['tokens']):,}"
    lines.append(texts["data"].format(samples=samples, tokens=tokens, machine=data["machine"], **ratios))
    return "\n".join([*lines, "", *gpu_tables(texts)])


def words_for(row: dict[str, str], texts: dict) -> str:
    """Return how a row was measured: machine, threads, clock."""
    return texts["setting"].format(**row | {"clock": texts["clocks"][row["clock"]]})


def header(heads: tuple[str, ...], left: int) -> list[str]:
    """Return a table's head, its first columns aligned to the left."""
    return ["| " + " | ".join(heads) + " |", "|:--" * left + "|--:" * (len(heads) - left) + "|"]


def sequence_table(texts: dict) -> list[str]:
    """Return the Markdown lines of training a trajectory in one sequence and reply by reply."""
    rows = of_one_setting(read("one_sequence.csv"))
    rows.sort(key=lambda row: (row["data"] != "synthetic", row["data"], int(row["trajectory_tokens"])))
    kept = int(rows[0]["noise_turns"]) + 1
    text = texts["sequence"].format(**rows[0], kept=kept, setting=words_for(rows[0], texts))
    lines, former = [text, "", *header(texts["sequence_head"], 2)], ""
    for row in rows:
        name = "" if row["data"] == "synthetic" else f"`{row['data'].split()[0]}`: "
        trajectory = texts["trajectory"].format(
            name=name, messages=row["messages"], tokens=f"{int(row['trajectory_tokens']):,}"
        )
        cells = (
            "" if trajectory == former else trajectory,
            WAYS[row["way"]][texts["language"]].format(**row),
            f"{int(row['forward_tokens']):,}",
            f"{float(row['keys_in_sight']):,.0f}",
            f"{float(row['seconds']):.2f}",
            f"{float(row['over_turns']):.2f}",
            f"{float(row['peak_mib']):,.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
        former = trajectory
    return lines


def attention_table(texts: dict) -> list[str]:
    """Return the Markdown lines of the speed-ups of blockwise attention by length and share."""
    rows = [row for row in read("attention.csv") if row["method"] == "blockwise" and row["layout"] == "scattered"]
    rows = of_one_setting(rows)
    shares = sorted({row["memory_share"] for row in rows}, key=float)
    length_name, causal, memory = texts["attention_head"]
    heads = (length_name, causal, *(f"{float(share):.0%}" for share in shares), memory)
    lines = [
        texts["attention"].format(**rows[0], setting=words_for(rows[0], texts)),
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "--:|" * len(heads),
    ]
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


def turns_table(texts: dict) -> list[str]:
    """Return the Markdown lines of attention with NOISE seen in turns, each setting of one machine a column."""
    rows = [row for row in read("attention.csv") if row["method"] == "blockwise" and row["layout"] in TURN_LAYOUTS]
    chosen = of_one_setting(row for row in rows if row["noise_turns"])
    length, share = max(int(row["tokens"]) for row in chosen), chosen[0]["memory_share"]
    rows = [row for row in rows if row["machine"] == chosen[0]["machine"]]
    rows = [row for row in rows if int(row["tokens"]) == length and row["memory_share"] == share]
    settings = sorted({setting(row) for row in rows if row["noise_turns"]})
    numbers = {"tokens": f"{length:,}", "length": length, "share": f"{float(share):.0%}", "memory_share": share}
    columns = tuple(
        texts["turns_columns"].format(threads=threads, clock=texts["clocks"][clock]) for threads, clock, _ in settings
    )
    lines = [texts["turns"].format(**numbers, machine=chosen[0]["machine"]), ""]
    lines += header((*texts["turns_head"], *columns), 1)
    for layout, turns in dict.fromkeys((row["layout"], row["noise_turns"]) for row in rows):
        own = {setting(row): row for row in rows if (row["layout"], row["noise_turns"]) == (layout, turns)}
        limit = float(next(iter(own.values()))["limit"])
        cells = [TURN_LAYOUTS[layout][texts["language"]], turns, f"{limit:.1f}×"]
        for chosen_setting in settings:
            speed_up = float(own[chosen_setting]["speed_up"]) if chosen_setting in own else None
            cells.append(f"{speed_up:.1f}× ({speed_up / limit:.0%})" if speed_up else "")
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
    rows = of_one_setting(row for row in rows if not row["variant"].startswith(TURNS))
    plain = {point(row): row for row in rows if row["variant"] == "plain"}
    lines = [texts["decode"].format(setting=words_for(rows[0], texts)), "", *header(texts["decode_head"], 1)]
    for row in rows:
        if row["variant"] == "hsa":
            memory = f"{float(row['memory_share']):.0%}"
            lines.append("| " + " | ".join(decode_cells(row, plain[point(row)], memory, texts)) + " |")
    return lines


def decode_turns_table(texts: dict) -> list[str]:
    """Return the Markdown lines of decoding with NOISE seen in turns."""
    rows = [row for row in read("decode.csv") if row["measured"] == "decoding"]
    own = of_one_setting(row for row in rows if row["variant"].startswith(TURNS))
    plain = {point(row): row for row in rows if row["variant"] == "plain" and setting(row) == setting(own[0])}
    share = own[0]["memory_share"]
    numbers = sorted({row["variant"].removeprefix(TURNS) for row in own}, key=int)
    words = {"share": f"{float(share):.0%}", "memory_share": share, "numbers": " ".join(numbers)}
    lines = [texts["decode_turns"].format(**words, setting=words_for(own[0], texts)), ""]
    lines += header(texts["decode_turns_head"], 1)
    for row in own:
        if row["memory_share"] == share:
            cells = decode_cells(row, plain[point(row)], row["variant"].removeprefix(TURNS), texts)
            lines.append("| " + " | ".join((*cells, f"{max(float(row['turn_end_ms']), 0):.1f}")) + " |")
    return lines


def decode_cells(row: dict[str, str], plain: dict[str, str], middle: str, texts: dict) -> tuple[str, ...]:
    """Return the cells of one case of decoding, `middle` being what tells cases of one length apart."""
    own, other = float(row["tokens_per_second"]), float(plain["tokens_per_second"])
    return (
        texts["parameters"].format(int(row["parameters"]) / 1e6),
        f"{int(row['tokens']):,}",
        middle,
        f"{other:,.0f}" if other >= 100 else f"{other:.3g}",
        f"{own:,.0f}" if own >= 100 else f"{own:.3g}",
        f"{own / other:.2f}",
        f"{float(row['bytes_of_plain']):.3f}",
    )


def point(row: dict[str, str]) -> tuple[str, ...]:
    """Return what variants that were measured side by side have in common."""
    return row["model"], row["tokens"], row["memory_share"]
