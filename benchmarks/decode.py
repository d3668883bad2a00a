"""Generating with HSA's cache, against transformers' DynamicCache without HSA and against HSA without eviction.

    python benchmarks/decode.py          # table on screen, benchmarks/results/decode.csv, docs/images/decode.png

Tokens a second are those of the forward passes of greedy decoding, batch 1, on a cache that already holds a trajectory:
turns of 100 tokens, of which a share is GLOBAL or LANDMARK; what is generated is NOISE. Keys and values of that cache
are random numbers, which costs nothing to make and changes no time. Variants take turns. What dropping keys costs is
timed by itself, and given as a share of the steps between two times it happens. The time to the first token
(`--prefill`) is that of `generate` on the whole prompt.
"""

import argparse
import statistics
import time

import report
import torch
from attention import make_types
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from hsa_factory import HSAConfig, disable_hsa, enable_hsa, tiny
from hsa_factory.models import HSACache


CONFIG = HSAConfig(generated_type="NOISE")
CHUNK = 256  # of keys dropped together


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


def fill(cache: DynamicCache | HSACache, model: Qwen3ForCausalLM, types: torch.Tensor) -> None:
    """Put random keys and values of a prompt into a cache."""
    config, length = model.config, types.shape[1]
    shape = (1, config.num_key_value_heads, length, config.head_dim)
    if isinstance(cache, HSACache):
        cache.bind(config, dict.fromkeys(range(config.num_hidden_layers)), CONFIG)
        cache.begin(types, types, None, CONFIG)
    for layer in range(config.num_hidden_layers):
        cache.update(torch.randn(shape), torch.randn(shape), layer)
    if isinstance(cache, HSACache):
        cache.commit()


def cache_bytes(cache: DynamicCache | HSACache) -> int:
    """Return the memory of all keys and values."""
    if isinstance(cache, HSACache):
        return cache.report().bytes
    return sum(tensor.untyped_storage().nbytes() for layer in cache.layers for tensor in (layer.keys, layer.values))


def decode(model: Qwen3ForCausalLM, cache: DynamicCache | HSACache, token: torch.Tensor, steps: int) -> list[float]:
    """Decode greedily; return the seconds of each step."""
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        typed = {"semantic_ids": torch.full_like(token, 2)} if isinstance(cache, HSACache) else {}
        logits = model(input_ids=token, past_key_values=cache, use_cache=True, **typed).logits
        token = logits[:, -1:].argmax(-1)
        seconds.append(time.perf_counter() - start)
    return seconds


def measure_decoding(model: Qwen3ForCausalLM, length: int, share: float, steps: int, rounds: int) -> list[dict]:
    """Time the three variants, taking turns."""
    types = make_types(length, share, scattered=False)
    caches = {
        "plain": DynamicCache(config=model.config),
        "no eviction": HSACache(CONFIG, evict=False),
        "hsa": HSACache(CONFIG),
    }
    for cache in caches.values():
        fill(cache, model, types)
    sizes = {name: cache_bytes(cache) for name, cache in caches.items()}
    token, times = torch.tensor([[5]]), {name: [] for name in caches}
    for round_number in range(rounds + 1):
        for name, cache in caches.items():
            enable_hsa(model, CONFIG) if name != "plain" else disable_hsa(model)
            seconds = decode(model, cache, token, steps)
            times[name] += seconds[1:] if round_number else []
    enable_hsa(model, CONFIG)
    usual = statistics.median(times["hsa"])
    records = []
    for name, cache in caches.items():
        kept = int((types != 2).sum()) + CONFIG.noise_window + 1 + CHUNK
        records.append(
            {
                "measured": "decoding",
                "tokens": length,
                "memory_share": share,
                "variant": name,
                "cache_bytes": sizes[name],
                "bytes_of_plain": round(sizes[name] / sizes["plain"], 5),
                "target_bytes_of_plain": round(1.1 * kept / length, 5),
                "tokens_per_second": round(1 / statistics.median(times[name]), 3),
                "eviction_share": round(eviction_seconds(model, cache) / (CHUNK * usual), 6) if name == "hsa" else "",
                "first_token_seconds": "",
            }
        )
    return records


def eviction_seconds(model: Qwen3ForCausalLM, cache: HSACache) -> float:
    """Time of one eviction: the step in which it falls, less the median of the others."""
    token, extra = torch.tensor([[5]]), []
    for _ in range(2):
        seconds = decode(model, cache, token, CHUNK)
        extra.append(max(seconds[1:]) - statistics.median(seconds))
    return min(extra)


def measure_prefill(model: Qwen3ForCausalLM, length: int, share: float) -> list[dict]:
    """Time the first token of a prompt, without and with HSA."""
    types = make_types(length, share, scattered=False)
    ids = torch.randint(1, 1000, (1, length))
    options = {"max_new_tokens": 1, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    records = []
    for name in ("plain", "hsa"):
        disable_hsa(model)
        typed = {}
        if name == "hsa":
            enable_hsa(model, CONFIG)
            typed = {"semantic_ids": types}
        warm = {key: value[:, :256] if isinstance(value, torch.Tensor) else value for key, value in options.items()}
        model.generate(ids[:, :256], **warm, **{key: value[:, :256] for key, value in typed.items()})
        start = time.perf_counter()
        model.generate(ids, **options, **typed)
        records.append(
            {
                "measured": "first token",
                "tokens": length,
                "memory_share": share,
                "variant": name,
                "cache_bytes": "",
                "bytes_of_plain": "",
                "target_bytes_of_plain": "",
                "tokens_per_second": "",
                "eviction_share": "",
                "first_token_seconds": round(time.perf_counter() - start, 4),
            }
        )
    return records


@torch.inference_mode()
def main() -> None:
    """Run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "100M"], choices=["tiny", "100M"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.02, 0.05, 0.2])
    parser.add_argument("--prefill", type=int, nargs="*", default=[4096, 16384])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--append", action="store_true", help="keep the results of the other cases")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    records = []
    for name in options.models:
        model = make_model(name)
        known = {"model": name, "parameters": sum(parameter.numel() for parameter in model.parameters())}
        cases = [(length, share) for length in options.lengths for share in options.shares]
        for length, share in track(cases, description=f"{name}, decoding"):
            found = measure_decoding(model, length, share, options.steps, options.rounds)
            records += [known | record for record in found]
        for length in track(options.prefill, description=f"{name}, first token"):
            records += [known | record for record in measure_prefill(model, length, options.shares[0])]
    records = [record | {"threads": options.threads, "machine": report.machine()} for record in records]

    table = Table(title=f"Decoding, batch 1, float32, {options.threads} threads, {report.machine()}")
    columns = [column for column in records[0] if column not in ("parameters", "threads", "machine", "measured")]
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for record in records:
        table.add_row(*(str(record[column]) for column in columns))
    Console().print(table)

    if options.append:
        keys = ("model", "measured", "tokens", "memory_share")
        new = {tuple(str(record[key]) for key in keys) for record in records}
        kept = [row for row in report.read("decode.csv") if tuple(row[key] for key in keys) not in new]
        records = kept + records
    report.write("decode.csv", records)
    report.plot_decoding()


if __name__ == "__main__":
    main()
