"""Serving with and without HSA on vLLM: the same weights, requests and pool of the KV cache, one after the other in one run.

    python benchmarks/serve.py --threads 1 --clock cpu # prompts of 1k to 16k tokens, 1 to 32 users; conversations
    python benchmarks/serve.py --lengths 2048 --users 4 --layers 2 --pool 8192      # a try

    python benchmarks/serve.py --plot                  # table and plot, docs/images/serving.png, of what was measured

Needs vLLM (`make test-vllm` makes an environment), the plot matplotlib. Rows are added to benchmarks/results/serve.csv when a
case is done, and a case that has its rows is left out: a run that was stopped goes on when started again. A table goes to the
terminal. Without HSA the blocks have 32 tokens, the least that vLLM's CPU build takes.
"""

import argparse
import gc
import json
import os
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measuring import CLOCK_HELP, CLOCKS, machine
from results import ROOT, SETTING, merge, of_one_setting, read
from serving_load import ANSWER, REPLY, Engine, prompts, turns
from serving_matrix import MATRIX, Case


os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

NAME = "serve.csv"
ENGINES = {"plain": 32, "HSA": 16}  # tokens of a block
KEYS = ("load", "tokens", "users", "engine", "layers", "hidden", "pool_tokens", "dtype", "answer")
COLUMNS = {  # of the table, in its order
    "requests_at_once": "requests at once",
    "tokens_per_s": "tokens/s",
    "first_token_ms": "first token, ms",
    "between_tokens_ms": "between tokens, ms",
    "held_tokens_max": "cache held, tokens",
    "preemptions": "preemptions",
}


def make_models(directory: Path, layers: int, hidden: int, longest: int, dtype: str) -> tuple[Path, Path]:
    """Save one model twice, with and without HSA, and return both places."""
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
    return directory / "plain", directory / "hsa"


def cases(options: argparse.Namespace) -> list[Case]:
    """Return the cases that were asked for: the product of what was named, or all of `MATRIX`."""
    named = (options.loads, options.lengths, options.users)
    if not any(named):
        return list(MATRIX)
    loads, lengths, users = (given or default for given, default in zip(named, (["prompts"], [1024], [8])))
    answers = {"prompts": ANSWER, "turns": REPLY}
    return [
        Case(load, tokens, number, options.layers, options.answer or answers[load], options.rounds)
        for tokens, number, load in product(lengths, users, loads)
    ]


def measure(options: argparse.Namespace) -> None:
    """Run each case that has no rows yet on both engines, and write its rows."""
    known = {tuple(row[key] for key in (*KEYS, *SETTING)) for row in read(options.output)}
    waiting = [
        case
        for case in cases(options)
        if options.again
        or any(
            tuple(str(_about(case, engine, options)[key]) for key in (*KEYS, *SETTING)) not in known
            for engine in ENGINES
        )
    ]
    longest = max((case.tokens + case.answer for case in waiting), default=0) + 512
    engines: dict[int, dict[str, Engine]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for case in waiting:
            if case.layers not in engines:
                engines[case.layers] = _engines(Path(directory) / str(case.layers), case.layers, longest, options)
            merge(options.output, best_of(list(_run(case, engines[case.layers], options))), KEYS)


def _about(case: Case, engine: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a row says of its case."""
    return {
        "load": case.load,
        "tokens": case.tokens,
        "users": case.users,
        "engine": engine,
        "layers": case.layers,
        "hidden": options.hidden,
        "pool_tokens": options.pool,
        "dtype": options.dtype,
        "answer": case.answer,
        "threads": options.threads,
        "clock": options.clock,
        "machine": machine(),
    }


def _engines(directory: Path, layers: int, longest: int, options: argparse.Namespace) -> dict[str, Engine]:
    places = make_models(directory, layers, options.hidden, longest, options.dtype)
    clock = CLOCKS[options.clock]
    return {
        name: Engine(place, block_size, options.pool, options.chunk, longest, options.dtype, clock)
        for (name, block_size), place in zip(ENGINES.items(), places)
    }


def _run(case: Case, engines: dict[str, Engine], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a record for each run of a case, the engines in turn."""
    torch.manual_seed(case.tokens + case.users)
    vocabulary = next(iter(engines.values())).vocabulary
    load = {"prompts": prompts, "turns": turns}[case.load](case.tokens, case.users, vocabulary, case.answer)
    for _ in range(case.rounds):
        for name, engine in engines.items():
            gc.collect()
            about = _about(case, name, options)
            first = {key: about.pop(key) for key in KEYS}
            record = first | engine.run(load).record() | about
            print(json.dumps({name: record[name] for name in ("engine", *KEYS[:3], *COLUMNS)}), flush=True)
            yield record


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
    names = {"load": "load", "tokens": "prompt", "answer": "answer", "users": "users", "layers": "layers"}
    head = [*names.values(), *COLUMNS.values(), "times tokens/s"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(names)}{'--:|' * (len(COLUMNS) + 1)}"]
    for plain, hsa in pairs(rows):
        cells = [f"{plain[name]} → {hsa[name]}" for name in COLUMNS]
        gain = float(hsa["tokens_per_s"]) / float(plain["tokens_per_s"])
        lines.append(f"| {' | '.join([*(plain[name] for name in names), *cells])} | {gain:.2f} |")
    return "\n".join(lines)


def pairs(rows: list[dict[str, str]]) -> list[tuple[dict[str, str], dict[str, str]]]:
    """Return the rows of both engines for each case that has both, sorted."""
    by_case: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        by_case.setdefault(tuple(row[key] for key in KEYS if key != "engine"), {})[row["engine"]] = row
    found = [(case["plain"], case["HSA"]) for case in by_case.values() if len(case) == 2]
    return sorted(found, key=lambda pair: (pair[0]["load"], int(pair[0]["tokens"]), int(pair[0]["users"])))


def plot(rows: list[dict[str, str]]) -> None:
    """Plot requests at once and tokens a second by prompt length, with HSA as a multiple of without it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    found = pairs(rows)
    for axis, column in zip(axes, ("requests_at_once", "tokens_per_s")):
        for load, users, answer in sorted({(one["load"], int(one["users"]), int(one["answer"])) for one, _ in found}):
            own = [
                pair
                for pair in found
                if (pair[0]["load"], pair[0]["users"], pair[0]["answer"]) == (load, str(users), str(answer))
            ]
            lengths = [int(plain["tokens"]) for plain, _ in own]
            gains = [float(hsa[column]) / float(plain[column]) for plain, hsa in own]
            axis.plot(lengths, gains, "o-", label=f"{load}, {users} users, {answer} tokens an answer")
        axis.axhline(1, color="#777777", linewidth=0.8)
        axis.set(
            xscale="log", xlabel="tokens of a prompt", ylabel=f"{COLUMNS[column]}, times those without HSA", ylim=0
        )
        axis.set_xticks(*zip(*((2**power, f"{2**power:,}") for power in range(10, 15))))
        axis.minorticks_off()
    axes[0].legend(frameon=False, fontsize=7)
    setting = rows[0]
    figure.suptitle(
        f"vLLM with HSA against without it, a KV cache of {setting['pool_tokens']} tokens\n"
        f"{setting['machine']}, {setting['threads']} thread, clock: {setting['clock']}",
        fontsize=10,
    )
    figure.savefig(ROOT / "docs" / "images" / "serving.png", dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, and write CSV and table; or the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lengths", type=int, nargs="+", help="tokens of a prompt; these three: benchmarks/serving_matrix.py"
    )
    parser.add_argument("--users", type=int, nargs="+")
    parser.add_argument("--loads", nargs="+", choices=["prompts", "turns"])
    parser.add_argument("--again", action="store_true", help="measure what has its rows, too")
    parser.add_argument("--layers", type=int, default=4, help="of a case that was named (%(default)s)")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--pool", type=int, default=20480, help="tokens that the KV cache holds (%(default)s)")
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
        measure(options)
    rows = of_one_setting(read(options.output))
    print(table(rows))
    if options.plot:
        plot(rows)


if __name__ == "__main__":
    main()
