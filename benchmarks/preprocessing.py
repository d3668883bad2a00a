"""What typing costs while data is prepared: LLaMA-Factory's own loading, converting and tokenizing, with and without.

    python benchmarks/preprocessing.py      # table on screen, benchmarks/results/preprocessing.csv

Plain, with the types that the data have, with turn numbers beside them (`noise_turns`), and with rules (`hsa.labels`) that
type parts of messages: the four take turns in one process, in another order each round, over the same 1,000 samples made from
the quickstart's trajectories; medians of the processor's time, which a busy machine disturbs less.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path


os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "ERROR")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import llamafactory.train.sft.workflow as workflow
import results
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from measuring import machine

import hsa_factory.quickstart
from hsa_factory import FeedbackConfig, HSAConfig, tiny
from hsa_factory.llamafactory import integrate


DATA = Path(hsa_factory.quickstart.__file__).parent / "data"


def make_data(directory: Path, samples: int, tokenizer: str | None) -> str:
    """Write the samples and, unless a tokenizer is given, a tiny model; return the model's directory."""
    trajectories = json.loads((DATA / "trajectories_text.json").read_text(encoding="utf-8"))
    repeated = []
    for number in range(samples):
        sample = json.loads(json.dumps(trajectories[number % len(trajectories)]))
        sample["messages"][1]["content"] += f" (task {number})"  # no two samples are the same
        repeated.append(sample)
    (directory / "data.json").write_text(json.dumps(repeated, ensure_ascii=False), encoding="utf-8")
    info = json.loads((DATA / "dataset_info.json").read_text(encoding="utf-8"))["household_text"]
    entry = info | {"file_name": "data.json"}
    untyped = entry | {"tags": {name: tag for name, tag in info["tags"].items() if name != "semantic_tag"}}
    (directory / "dataset_info.json").write_text(json.dumps({"data": entry, "untyped": untyped}), "utf-8")
    if tokenizer:
        return tokenizer
    corpus = (DATA / "corpus.txt").read_text(encoding="utf-8").splitlines()
    return str(tiny.save_tiny("qwen3", directory / "model", corpus))


def prepare(directory: Path, model: str, mode: str) -> tuple[float, int]:
    """Prepare the data once; return the processor's seconds and the number of tokens."""
    labels, turns = ("embodied-reasoner" if mode == "ruled" else None), (1 if mode == "turns" else None)
    hsa = HSAConfig(labels=labels, noise_turns=turns)
    args = {
        "model_name_or_path": model,
        "stage": "sft",
        "do_train": True,
        "dataset": "untyped" if mode == "ruled" else "data",
        "dataset_dir": str(directory),
        "template": "qwen3_nothink",
        "cutoff_len": 2048,
        "output_dir": str(directory / "out"),
        "overwrite_cache": True,
        "report_to": "none",
    }
    context = contextlib.nullcontext() if mode == "plain" else integrate(hsa, FeedbackConfig())
    with context, contextlib.redirect_stdout(io.StringIO()):
        model_args, data_args, training_args, _, _ = get_train_args(args)
        tokenizer_module = workflow.load_tokenizer(model_args)
        template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], data_args)
        start = time.process_time()
        module = workflow.get_dataset(template, model_args, data_args, training_args, stage="sft", **tokenizer_module)
        seconds = time.process_time() - start
    return seconds, sum(map(len, module["train_dataset"]["input_ids"]))


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokenizer", help="directory of a model or tokenizer; default: a tiny one, made here")
    options = parser.parse_args()

    seconds: dict[str, list[float]] = {"plain": [], "typed": [], "turns": [], "ruled": []}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = make_data(directory, options.samples, options.tokenizer)
        modes = list(seconds)
        for round_number in range(options.rounds + 1):
            random.Random(round_number).shuffle(
                modes
            )  # what runs after another finds its memory, and is slower for it
            for mode in modes:
                gc.collect()
                measured, tokens = prepare(directory, model, mode)
                if round_number:  # the first warms up
                    seconds[mode].append(measured)

    record = {"samples": options.samples, "tokens": tokens}
    record |= {f"{mode}_seconds": round(statistics.median(values), 3) for mode, values in seconds.items()}
    for mode in ("typed", "turns", "ruled"):
        ratios = [value / plain for plain, value in zip(seconds["plain"], seconds[mode])]
        record[f"{mode}_over_plain"] = round(statistics.median(ratios), 3)
    record["machine"] = machine()
    results.write("preprocessing.csv", [record])
    print(", ".join(f"{name} {value}" for name, value in record.items()))


if __name__ == "__main__":
    main()
