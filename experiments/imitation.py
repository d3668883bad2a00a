"""Training through ``hsa-factory train`` on LLaMA-Factory: its file is written here, kept, and run in this process."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hsa_factory.cli import main as hsa_factory
from hsa_factory.whole_files import write_whole

from .settings import Phase, Training


MODEL = "model"
"""Folder of the trained model, in that of a run."""


@dataclass(frozen=True)
class Run:
    """What is trained, and on what.

    Attributes:
        start: Folder of the model that it begins from.
        dataset_dir: LLaMA-Factory's.
        dataset: Names, with commas between.
        training: Steps and batches.
        seed: Of the order of the data.
        hsa: The block ``hsa``, with rules in it if there are any.
        feedback: The block ``feedback``; None: there is none.
        more: Further options of LLaMA-Factory.
    """

    start: Path
    dataset_dir: Path
    dataset: str
    training: Training
    seed: int
    hsa: Mapping[str, Any]
    feedback: Mapping[str, Any] | None = None
    more: Mapping[str, Any] | None = None


def train(folder: Path, run: Run) -> dict[str, Any]:
    """Train in a folder, phase by phase, and return what it took.

    Returns:
        ``tokens`` trained on, ``epochs``, ``cpu_seconds`` of this process with loading and preparing data, ``loss`` at the
        end, the share of tokens by type, and ``checkpoints``: folders, each with the tokens it has seen.

    Raises:
        RuntimeError: If hsa-factory has ended with an error, which it has shown.
    """
    started, tokens, epochs, checkpoints = time.process_time(), 0.0, 0.0, []
    start, last = run.start, len(run.training.phases) - 1
    for number, phase in enumerate(run.training.phases):
        output = folder / (MODEL if number == last else f"phase_{number}")
        file = folder / f"train_{number}.yaml"
        write_whole(file, yaml.safe_dump(training_file(run, phase, start, output), sort_keys=False))
        if hsa_factory(["train", str(file)]) != 0:
            raise RuntimeError(f"hsa-factory train {file} ended with an error; see the log.")
        state = json.loads((output / "trainer_state.json").read_text("utf-8"))
        (data,) = _report(output)
        here = {int(path.name.rpartition("-")[2]): path for path in output.glob("checkpoint-*")}
        a_step = state["epoch"] * data["total_tokens"] / state["global_step"]
        checkpoints += [
            {"folder": str(path.relative_to(folder)), "tokens": round(tokens + step * a_step)}
            for step, path in sorted(here.items())
        ]
        tokens, epochs, start = tokens + a_step * state["global_step"], epochs + state["epoch"], output
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    return {
        "tokens": round(tokens),
        "epochs": round(epochs, 2),
        "cpu_seconds": round(time.process_time() - started, 1),
        "loss": losses[-1] if losses else None,
        "shares": {kind: count / data["total_tokens"] for kind, count in data["tokens"].items()},
        "checkpoints": checkpoints,
    }


def training_file(run: Run, phase: Phase, start: Path, output: Path) -> dict[str, Any]:
    """Return what stands in a phase's training file."""
    training = run.training
    blocks: dict[str, Any] = {"hsa": dict(run.hsa)}
    if run.feedback is not None:
        blocks["feedback"] = dict(run.feedback)
    blocks["loss_weights"] = {"roles": {"user": training.observation_weight}}
    return {
        "model_name_or_path": str(start),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        **blocks,
        "dataset": run.dataset,
        "dataset_dir": str(run.dataset_dir),
        "cutoff_len": training.row_tokens,
        "neat_packing": True,
        "output_dir": str(output),
        "overwrite_output_dir": True,
        "per_device_train_batch_size": training.rows,
        "max_steps": phase.steps,
        "learning_rate": phase.learning_rate,
        "lr_scheduler_type": "cosine",
        "adam_beta1": 0.9,
        "adam_beta2": 0.98,
        "seed": run.seed,
        "logging_steps": min(50, phase.steps),
        "save_strategy": "steps",
        "save_steps": max(phase.steps // training.saves, 1),
        "save_only_model": True,
        "report_to": "none",
        "use_cpu": True,
        "disable_gradient_checkpointing": True,
        "preprocessing_num_workers": 1,
        **(run.more or {}),
    }


def _report(output: Path) -> list[dict[str, Any]]:
    """Return what hsa-factory has counted of the data, of all data sets together."""
    found = json.loads((output / "hsa_report.json").read_text("utf-8"))["datasets"].values()
    kinds = {kind for data in found for kind in data["tokens"]}
    return [
        {
            "total_tokens": sum(data["total_tokens"] for data in found),
            "tokens": {kind: sum(data["tokens"].get(kind, 0) for data in found) for kind in sorted(kinds)},
        }
    ]
