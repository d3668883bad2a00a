"""Serving with and without HSA on vLLM: the same weights, requests and pool of the KV cache, one after the other in one run.

    python benchmarks/serve.py                         # lengths 1k to 16k, 1 to 32 users, prompts and conversations
    python benchmarks/serve.py --lengths 2048 --users 4 --layers 2 --pool 8192      # a try

    python benchmarks/serve.py --plot                  # the plot, docs/images/serving.png, of what was measured

Needs vLLM (`make test-vllm` makes an environment), the plot matplotlib. Rows are added to benchmarks/results/serve.csv; a table
goes to the terminal. Without HSA the blocks have 32 tokens, the least that vLLM's CPU build takes.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import CLOCK_HELP, CLOCKS, machine
from results import ROOT, merge, of_one_setting, read


os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

NAME = "serve.csv"
KEYS = ("load", "tokens", "users", "engine", "layers", "hidden", "pool_tokens", "dtype", "answer")
COLUMNS = {  # of the table, in its order
    "requests_at_once": "requests at once",
    "tokens_per_s": "tokens/s",
    "first_token_ms": "first token, ms",
    "between_tokens_ms": "between tokens, ms",
    "held_tokens_max": "cache held, tokens",
    "preemptions": "preemptions",
}


def make_models(directory: Path, layers: int, hidden: int, longest: int, dtype: str) -> tuple[Path, Path, int]:
    """Save one model twice, with and without HSA, and return both places and the number of token ids."""
    from hsa_factory import HSAConfig, tiny
    from hsa_factory.serving_checkpoint import write_serving_architecture

    tokenizer = tiny.build_tokenizer(["open the fridge and take the apple"] * 4)
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": 3 * hidden, "head_dim": 64}
    heads = {"num_attention_heads": hidden // 64, "num_key_value_heads": max(hidden // 256, 1)}
    model = tiny.build_model("qwen3", tokenizer, **sizes, **heads, max_position_embeddings=longest)
    model = model.to(getattr(torch, dtype))
    for name in ("plain", "hsa"):
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    HSAConfig(default_type="NOISE").save_pretrained(directory / "hsa")
    write_serving_architecture(directory / "hsa")
    return directory / "plain", directory / "hsa", len(tokenizer) - 32


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all loads on both engines and return a record for each run."""
    from serving_load import Engine, prompts, turns

    records = []
    longest = max(options.lengths) + 512
    with tempfile.TemporaryDirectory() as directory:
        *places, vocabulary = make_models(Path(directory), options.layers, options.hidden, longest, options.dtype)
        engines = {}
        for name, place, block_size in (("plain", places[0], 32), ("HSA", places[1], 16)):
            clock = CLOCKS[options.clock]
            engines[name] = Engine(place, block_size, options.pool, options.chunk, longest, options.dtype, clock)
        for tokens in options.lengths:
            for users in options.users:
                for kind in options.loads:
                    torch.manual_seed(tokens + users)
                    answer = {} if options.answer is None else {"answer": options.answer}
                    load = {"prompts": prompts, "turns": turns}[kind](tokens, users, vocabulary, **answer)
                    for name, engine in engines.items():
                        for _ in range(options.rounds):
                            seen = engine.run(load)
                            case = {"load": kind, "tokens": tokens, "users": users, "engine": name}
                            case |= {"layers": options.layers, "hidden": options.hidden, "pool_tokens": options.pool}
                            case |= {
                                "dtype": options.dtype,
                                "answer": load.answer,
                                **seen.record(),
                                "threads": options.threads,
                            }
                            records.append(case | {"clock": options.clock, "machine": machine()})
                            print(json.dumps({name: records[-1][name] for name in ("engine", *KEYS[:3], *COLUMNS)}))
    return best_of(records)


def best_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the fastest of several rounds of each case: what else the machine does only slows a run."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in records:
        case = tuple(record[key] for key in KEYS)
        if case not in best or record["seconds"] < best[case]["seconds"]:
            best[case] = record
    return list(best.values())


def table(rows: list[dict[str, str]]) -> str:
    """Return a Markdown table: each case with both engines, `plain → HSA`."""
    head = ["load", "prompt", "users", *COLUMNS.values(), "times tokens/s"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * 3}{'--:|' * (len(COLUMNS) + 1)}"]
    for plain, hsa in pairs(rows):
        cells = [f"{plain[name]} → {hsa[name]}" for name in COLUMNS]
        gain = float(hsa["tokens_per_s"]) / float(plain["tokens_per_s"])
        lines.append(f"| {plain['load']} | {plain['tokens']} | {plain['users']} | {' | '.join(cells)} | {gain:.2f} |")
    return "\n".join(lines)


def pairs(rows: list[dict[str, str]]) -> list[tuple[dict[str, str], dict[str, str]]]:
    """Return the rows of both engines for each case that has both, sorted."""
    by_case: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        by_case.setdefault(tuple(row[key] for key in KEYS if key != "engine"), {})[row["engine"]] = row
    found = [(case["plain"], case["HSA"]) for case in by_case.values() if len(case) == 2]
    return sorted(found, key=lambda pair: (pair[0]["load"], int(pair[0]["tokens"]), int(pair[0]["users"])))


def plot(rows: list[dict[str, str]]) -> None:
    """Plot requests at once and tokens a second by prompt length, for the most users."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    most = str(max(int(row["users"]) for row in rows))
    for axis, column in zip(axes, ("requests_at_once", "tokens_per_s")):
        for engine, colour in (("plain", "#777777"), ("HSA", "#1b9aaa")):
            for load, style in (("prompts", "o-"), ("turns", "s--")):
                own = [row for row in rows if (row["engine"], row["load"], row["users"]) == (engine, load, most)]
                own.sort(key=lambda row: int(row["tokens"]))
                lengths, values = [int(row["tokens"]) for row in own], [float(row[column]) for row in own]
                axis.plot(lengths, values, style, color=colour, label=f"{engine}, {load}")
        axis.set(xscale="log", xlabel="tokens of a prompt", ylabel=COLUMNS[column])
        axis.legend(frameon=False, fontsize=8)
    pool = rows[0]["pool_tokens"]
    figure.suptitle(
        f"vLLM with and without HSA, {most} users, a KV cache of {pool} tokens\n{rows[0]['machine']}", fontsize=10
    )
    figure.savefig(ROOT / "docs" / "images" / "serving.png", dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, and write CSV and table; or the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--loads", nargs="+", default=["prompts", "turns"], choices=["prompts", "turns"])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--pool", type=int, default=40960, help="tokens that the KV cache holds (%(default)s)")
    parser.add_argument("--answer", type=int, help="tokens of an answer (64 to a prompt, 16 in a conversation)")
    parser.add_argument("--chunk", type=int, default=1024, help="tokens of a step (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="of which the fastest counts (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help=CLOCK_HELP)
    parser.add_argument("--plot", action="store_true", help="measure nothing, plot what was measured")
    parser.add_argument("--output", default=NAME, help="name in benchmarks/results (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.plot:
        merge(options.output, measure(options), KEYS)
    rows = of_one_setting(read(options.output))
    print(table(rows))
    if options.plot:
        plot(rows)


if __name__ == "__main__":
    main()
