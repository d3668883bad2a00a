"""Generating with HSA's cache, against transformers' DynamicCache without HSA and against HSA without eviction.

    python benchmarks/decode.py          # table on screen, benchmarks/results/decode.csv, docs/images/decode.png

Tokens a second are those of the forward passes of greedy decoding, batch 1, on a cache that already holds a trajectory:
turns of 100 tokens, of which a share is GLOBAL or LANDMARK; what is generated is NOISE. Keys and values of that cache
are random numbers, which costs nothing to make and changes no time. All lengths and variants take turns, `--steps` tokens
each; the median of the `--rounds` counts, so what is done once in many tokens is in it, but not the rare drop of keys: that
is timed by itself, and given as a share of the steps between two times it happens. The time to the first token
(`--prefill`) is that of `generate` on the whole prompt, the median of as many rounds.

A run replaces its own cases (of the same threads, clock and machine) in the results and leaves the others, so it can be done in pieces:

    python benchmarks/decode.py --models tiny --shares 0.02 --prefill
    python benchmarks/decode.py --turns 0 1 --lengths 2048 8192 --shares 0.05 --prefill

`--turns` adds a variant for each number: NOISE is seen for so many turns after its own instead of in a window, the turns as
long as those of real trajectories; no turn ends while it is timed. What happens when one does is timed by itself
(`turn_end_ms`): the step that reads the first token of a new turn, after which all NOISE of the oldest one goes, less a
usual step.
"""

import argparse
import copy
import statistics

import plots
import results
import torch
from decoding import CHUNK, TURNS, cache_bytes, config_of, decode, fill, make_cache, switch, visible_keys
from layouts import make_types
from measuring import CLOCK_HELP, CLOCKS, machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import Qwen3Config, Qwen3ForCausalLM

from hsa_factory import enable_hsa, tiny
from hsa_factory.models import HSACache


VARIANTS = ("plain", "no eviction", "hsa")
AFTERMATH = 8  # steps from the drop of keys on that may take longer for it
KEYS = ("model", "measured", "tokens", "memory_share", "variant")
clock = CLOCKS["wall"]


def make_model(name: str) -> Qwen3ForCausalLM:
    """Build the tiny model of the tests, or one of about 100M parameters, with random weights."""
    if name == "tiny":
        return tiny.build_model("qwen3", max_position_embeddings=2**20)
    config = Qwen3Config(
        vocab_size=8192,
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2**20,
    )
    return Qwen3ForCausalLM(config).eval()


def measure_decoding(
    model: Qwen3ForCausalLM,
    lengths: list[int],
    share: float,
    steps: int,
    rounds: int,
    evictions: int,
    variants: list[str],
) -> list[dict]:
    """Time all lengths and variants, taking turns."""
    types = {length: make_types(length, share, scattered=False) for length in lengths}
    caches = {(length, variant): make_cache(variant, model) for length in lengths for variant in variants}
    for (length, _), cache in caches.items():
        fill(cache, model, types[length])
    sizes = {case: cache_bytes(cache) for case, cache in caches.items()}
    times = {case: [] for case in caches}
    for round_number in track(range(rounds + 1), description=f"decoding, {share:.0%}"):
        for case, cache in caches.items():
            switch(model, case[1])
            decode(model, cache, 1)
            seconds = decode(model, cache, steps, clock)
            times[case] += [statistics.mean(seconds)] if round_number else []

    records = []
    for (length, variant), cache in caches.items():
        enable_hsa(model, config_of(variant))
        kept = visible_keys(variant, types[length]) + CHUNK
        size, plain_size = sizes[length, variant], sizes[length, "plain"]
        evicting = eviction_seconds(model, cache, evictions) / CHUNK if variant == "hsa" else 0
        usual = statistics.median(times[length, variant])
        records.append(
            {
                "measured": "decoding",
                "tokens": length,
                "memory_share": share,
                "variant": variant,
                "cache_bytes": size,
                "bytes_of_plain": round(size / plain_size, 5),
                "target_bytes_of_plain": round(1.1 * kept / length, 5),
                "tokens_per_second": round(1 / usual, 3),
                "eviction_share": round(evicting / usual, 6) if variant == "hsa" else "",
                "turn_end_ms": round(turn_end_ms(model, cache, evictions), 2) if variant.startswith(TURNS) else "",
                "first_token_seconds": "",
            }
        )
    return records


def turn_end_ms(model: Qwen3ForCausalLM, cache: HSACache, repeats: int) -> float:
    """Time the step that begins a turn, with the drop of keys after it, less a usual step, in milliseconds."""
    extra = []
    for _ in range(repeats):
        twin = copy.deepcopy(cache)
        usual = statistics.median(decode(model, twin, AFTERMATH, clock))
        token, turn = torch.tensor([[5]]), twin.turn_ids[:, -1:] + 1
        start = clock()
        model(input_ids=token, semantic_ids=torch.full_like(token, 2), turn_ids=turn, past_key_values=twin)
        extra.append(clock() - start - usual)
    return 1e3 * statistics.median(extra)


def eviction_seconds(model: Qwen3ForCausalLM, cache: HSACache, evictions: int) -> float:
    """Time of one drop of keys: the step in which it happens and those after it, less as many usual ones."""
    extra = []
    for _ in range(evictions):
        seconds, dropped, held = [], None, cache.layers[0].get_seq_length()
        while dropped is None or len(seconds) < dropped + AFTERMATH:
            seconds += decode(model, cache, 1, clock)
            before, held = held, cache.layers[0].get_seq_length()
            dropped = len(seconds) - 1 if held <= before else dropped
        extra.append(sum(seconds[dropped:]) - AFTERMATH * statistics.median(seconds))
    return statistics.median(extra)


def measure_prefill(model: Qwen3ForCausalLM, length: int, share: float, rounds: int) -> list[dict]:
    """Time the first token of a prompt, without and with HSA, taking turns."""
    types = make_types(length, share, scattered=False)
    ids = torch.randint(1, 1000, (1, length))
    options = {"max_new_tokens": 1, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    times = {"plain": [], "hsa": []}
    for round_number in range(rounds + 1):
        for variant, seconds in times.items():
            switch(model, variant)
            typed = {} if variant == "plain" else {"semantic_ids": types}
            start = clock()
            model.generate(ids, **options, **typed)
            seconds += [clock() - start] if round_number else []
    empty = (
        "cache_bytes",
        "bytes_of_plain",
        "target_bytes_of_plain",
        "tokens_per_second",
        "eviction_share",
        "turn_end_ms",
    )
    return [
        {"measured": "first token", "tokens": length, "memory_share": share, "variant": variant}
        | dict.fromkeys(empty, "")
        | {"first_token_seconds": round(statistics.median(seconds), 4)}
        for variant, seconds in times.items()
    ]


@torch.inference_mode()
def main() -> None:
    """Run the measurements."""
    global clock
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "100M"], choices=["tiny", "100M"])
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024, 2048, 8192, 32768])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.02, 0.05, 0.2])
    parser.add_argument("--turns", type=int, nargs="*", default=[], help="noise_turns of further variants")
    parser.add_argument("--prefill", type=int, nargs="*", default=[4096, 16384])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--evictions", type=int, default=3, help="how many are timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help=CLOCK_HELP)
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    records, variants = [], [*VARIANTS, *(f"{TURNS}{turns}" for turns in options.turns)]
    for name in options.models:
        model, found = make_model(name), []
        for share in options.shares if options.lengths else []:
            counts = options.steps, options.rounds, options.evictions
            found += measure_decoding(model, options.lengths, share, *counts, variants)
        for length in track(options.prefill, description=f"{name}, first token"):
            found += measure_prefill(model, length, options.shares[0], options.rounds)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        records += [{"model": name, "parameters": parameters} | record for record in found]
    setting = {"threads": options.threads, "clock": options.clock, "machine": machine()}
    records = [record | setting for record in records]

    table = Table(title=f"Decoding, batch 1, float32, {', '.join(map(str, setting.values()))}")
    columns = [column for column in records[0] if column not in ("parameters", "measured", *setting)]
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for record in records:
        table.add_row(*(str(record[column]) for column in columns))
    Console(width=170).print(table)

    rows = results.merge("decode.csv", records, KEYS)
    rows.sort(
        key=lambda row: (row["model"] != "tiny", row["measured"], float(row["memory_share"]), int(row["tokens"]))
    )
    results.write("decode.csv", rows)
    plots.plot_decoding()


if __name__ == "__main__":
    main()
