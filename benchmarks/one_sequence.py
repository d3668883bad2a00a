"""A trajectory trained in one sequence that forgets in turns, against one sample of every reply with old observations cut.

    python benchmarks/one_sequence.py     # table on screen, benchmarks/results/one_sequence.csv
    python benchmarks/one_sequence.py --cases --data DATA.json --tokenizer DIRECTORY   # real trajectories only
    python benchmarks/one_sequence.py --threads 1 --clock cpu --cases 13:2048          # a busy machine

A step is the forward and backward passes over all replies of one trajectory (system prompt, task, and then a reply and an
observation in turn), by the same model: a Qwen3 of 2 layers, float32. Three ways take turns, and the same tokens are trained:

- one sequence, turns: HSA with `noise_turns`, one row
- one sequence, plain: one row without HSA; nothing is forgotten
- a sample a reply: a row for each reply without HSA, in which all NOISE observations but those that the reply sees in the
  first way are cut to a line. The rows go through the model one after another and their gradients are summed: without
  padding, with the least memory, and on a CPU faster than in batches. `--batch-tokens` makes batches of rows of like length
  instead, padded on the right, where a causal row never sees it, so that no mask is needed and attention keeps its fast path.

`--data` reads a JSON file of trajectories (`messages` with `role`, `content`, `semantic_type`); the tokenizer counts their
tokens. A run replaces its own cases in the results and leaves the others.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import results
import torch
import trajectories
from measuring import CLOCK_HELP, CLOCKS, machine, peak_mib
from model_step import make_model
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from trajectories import IGNORED, Message, Row, one_row, row_per_reply
from transformers import Qwen3ForCausalLM

from hsa_factory import HSAConfig, disable_hsa, enable_hsa
from hsa_factory.attention import AttentionPlan, LayerRules


TURNS, PLAIN, SAMPLES = "one sequence, turns", "one sequence, plain", "a sample a reply"
WAYS = (TURNS, PLAIN, SAMPLES)
KEYS = ("data", "messages", "trajectory_tokens", "noise_turns", "way")
Batch = dict[str, torch.Tensor]


def batches_of(rows: list[Row], limit: int) -> list[list[Row]]:
    """Put rows of like length together, at most `limit` tokens a batch, padding included; a longer row is alone."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row.input_ids), reverse=True):
        if batches and len(batches[-1][0].input_ids) * (len(batches[-1]) + 1) <= limit:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def collate(rows: list[Row], is_typed: bool) -> Batch:
    """Pad rows on the right; types and turn numbers only where they are asked for."""
    padding = {"input_ids": 0, "labels": IGNORED}
    padding |= {"semantic_ids": 2, "turn_ids": 0} if is_typed else {}
    return {
        name: torch.nn.utils.rnn.pad_sequence([getattr(row, name) for row in rows], True, value)
        for name, value in padding.items()
    }


def step(model: Qwen3ForCausalLM, batches: list[Batch], trained: int) -> None:
    """Sum the gradients of all batches; the loss is the mean over all trained tokens."""
    model.zero_grad(set_to_none=False)  # gradients stay where they are: they are no part of a step's memory
    for batch in batches:
        model(**batch, num_items_in_batch=trained, use_cache=False).loss.backward()


def keys_in_sight(rows: list[Row], rules: LayerRules | None) -> float:
    """Return how many keys a query sees whose next token is trained, on average; None: all before it."""
    seen = []
    for row in rows:
        places = torch.arange(len(row.input_ids))
        numbers = places + 1
        if rules is not None:
            last = AttentionPlan.from_inputs(row.semantic_ids[None], turn_ids=row.turn_ids[None]).last_seen(rules)[0]
            gone = torch.bincount(last + 1, minlength=len(places) + 1)[: len(places)].cumsum(0)
            numbers = numbers - gone
        seen.append(numbers[:-1][row.labels[1:] != IGNORED])
    return torch.cat(seen).double().mean().item()


def measure(
    model: Qwen3ForCausalLM, name: str, messages: list[Message], options: argparse.Namespace, advance: Callable
) -> list[dict]:
    """Measure one trajectory in all ways, which take turns."""
    config, whole = HSAConfig(noise_turns=options.turns), one_row(messages)
    tokens, trained = len(whole.input_ids), int((whole.labels != IGNORED).sum())
    rows = {TURNS: [whole], PLAIN: [whole], SAMPLES: row_per_reply(messages, keep=options.turns)}
    batches = {
        way: [collate(group, way == TURNS) for group in batches_of(rows[way], options.batch_tokens)] for way in WAYS
    }
    for group in batches.values():
        assert sum(int((batch["labels"] != IGNORED).sum()) for batch in group) == trained

    clock, memory = CLOCKS[options.clock], {}
    rounds = max(1, min(options.rounds, 2 * 8192 // tokens))
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for round_number in range(rounds + 1):
        for way in WAYS:
            enable_hsa(model, config) if way == TURNS else disable_hsa(model)
            if round_number == 0:  # warms up as well
                memory[way] = peak_mib(lambda: step(model, batches[way], trained))  # noqa: B023
                continue
            start = clock()
            step(model, batches[way], trained)
            seconds[way].append(clock() - start)
            advance(tokens / rounds / len(WAYS))

    forward = {way: sum(batch["input_ids"].numel() for batch in batches[way]) for way in WAYS}
    return [
        {
            "data": name,
            "messages": len(messages),
            "trajectory_tokens": tokens,
            "noise_turns": options.turns,
            "way": way,
            "rows": len(rows[way]),
            "batches": len(batches[way]),
            "forward_tokens": forward[way],
            "padding_tokens": forward[way] - sum(len(row.input_ids) for row in rows[way]),
            "trained_tokens": trained,
            "keys_in_sight": round(keys_in_sight(rows[way], LayerRules.of(config) if way == TURNS else None), 1),
            "seconds": round(statistics.median(seconds[way]), 4),
            "over_turns": round(statistics.median(a / b for a, b in zip(seconds[way], seconds[TURNS])), 3),
            "peak_mib": round(memory[way], 1),
            "layers": model.config.num_hidden_layers,
            "hidden_size": model.config.hidden_size,
            "vocabulary": model.config.vocab_size,
            "rounds": rounds,
            "threads": options.threads,
            "clock": options.clock,
            "machine": machine(),
        }
        for way in WAYS
    ]


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = ["13:2048", "25:4096", "49:8192", "49:16384"]
    parser.add_argument(
        "--cases", nargs="*", default=cases, help="messages:tokens of synthetic trajectories (%(default)s)"
    )
    parser.add_argument("--data", type=Path, help="JSON file of real trajectories, measured as well")
    parser.add_argument("--tokenizer", help="directory of the tokenizer that counts their tokens")
    parser.add_argument("--image-tokens", type=int, default=trajectories.IMAGE, help="of an <image> (%(default)s)")
    parser.add_argument("--turns", type=int, default=1, help="noise_turns (%(default)s)")
    parser.add_argument("--batch-tokens", type=int, default=0, help="of a batch of samples; 0: one after another")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="fewer from 8k tokens on (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help=CLOCK_HELP)
    options = parser.parse_args()
    if options.data and not options.tokenizer:
        parser.error("--data needs --tokenizer, which counts the tokens.")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    model = make_model(options.hidden)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    vocabulary = model.config.vocab_size
    made = [tuple(map(int, case.split(":"))) for case in options.cases]
    found = [("synthetic", trajectories.synthetic(messages, tokens, vocabulary)) for messages, tokens in made]
    if options.data:
        read = trajectories.read(options.data, options.tokenizer, vocabulary, options.image_tokens)
        found += [(f"{options.data.stem} {number}", messages) for number, messages in enumerate(read)]

    records: list[dict] = []
    with Progress() as progress:
        task = progress.add_task("measuring", total=sum(len(one_row(messages).input_ids) for _, messages in found))
        for name, messages in found:
            records += measure(model, name, messages, options, lambda part: progress.advance(task, part))
            results.merge("one_sequence.csv", records, KEYS)

    size = f"2 layers of {options.hidden}, float32, {options.threads} threads, {options.clock} clock"
    table = Table(title=f"One trajectory, {size}, {machine()}")
    columns = ("data", "messages", "way", "rows", "batches", "forward_tokens", "padding_tokens", "trained_tokens")
    columns += ("keys_in_sight", "seconds", "over_turns", "peak_mib")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for record in records:
        table.add_row(*(str(record[column]) for column in columns))
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
