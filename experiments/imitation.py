"""Training through ``hsa-factory train`` on LLaMA-Factory: its file is written here, kept, and run in this process."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hsa_factory.cli import main as hsa_factory
from hsa_factory.user_errors import UserError
from hsa_factory.whole_files import write_whole

from .checkpoints import (
    checkpoints,
    curve_steps,
    is_trained,
    keep_for_curve,
    last_checkpoint,
    logging_steps,
    remove_halves,
    save_steps,
)
from .command_line import STOPPED
from .parts import Parts
from .reading import read_json
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
    """Train in a folder, phase by phase, and return what it took; a training that was killed goes on from its last checkpoint.

    Returns:
        ``tokens`` trained on, ``epochs``, ``loss`` at the end, the ``shares`` of the tokens by type, ``checkpoints``: folders,
        each with the tokens it has seen; ``cpu_seconds`` with loading and preparing data, of all ``parts``: processes that
        have worked on it (see `Parts`), also of work that was lost.

    Raises:
        UserError: If hsa-factory has ended with an error, which it has shown.
    """
    tokens, epochs, kept = 0.0, 0.0, []
    start, last = run.start, len(run.training.phases) - 1
    with Parts(folder / "parts.json") as parts:
        for number, phase in enumerate(run.training.phases):
            output = folder / (MODEL if number == last else f"phase_{number}")
            file = folder / f"train_{number}.yaml"
            write_whole(file, yaml.safe_dump(training_file(run, phase, start, output), sort_keys=False))
            train_phase(file, phase, output)
            keep_for_curve(output, curve_steps(phase, run.training.saves))
            state, data = _read(output / "trainer_state.json"), _counted(output)
            a_step = state["epoch"] * data["total_tokens"] / state["global_step"]
            kept += [
                {"folder": str(path.relative_to(folder)), "tokens": round(tokens + step * a_step)}
                for step, path in checkpoints(output).items()
            ]
            tokens, epochs, start = tokens + a_step * state["global_step"], epochs + state["epoch"], output
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    return {
        "tokens": round(tokens),
        "epochs": round(epochs, 2),
        "cpu_seconds": parts.cpu_seconds,
        "loss": losses[-1] if losses else None,
        "shares": {kind: count / data["total_tokens"] for kind, count in data["tokens"].items()},
        "checkpoints": kept,
        "parts": parts.all,
    }


def train_phase(file: Path, phase: Phase, output: Path) -> None:
    """Train a phase unless that is done, from its last checkpoint if there is one.

    Args:
        file: Its training file.
        phase: Which.
        output: Folder of the model that comes of it.

    Raises:
        UserError: If hsa-factory has ended with an error. A checkpoint that led no further is not tried again.
    """
    if is_trained(output, phase):
        return
    remove_halves(output)
    begin = last_checkpoint(output, phase)
    go_on = [] if begin is None else [f"resume_from_checkpoint={begin}"]
    try:
        code = hsa_factory(["train", str(file), *go_on])
    except Exception:
        _drop_if_last(begin, output, phase)
        raise
    if code == STOPPED:  # by Ctrl-C
        raise KeyboardInterrupt
    if code != 0:
        _drop_if_last(begin, output, phase)
        raise UserError(f"hsa-factory train {file} ended with an error; see the log.", exit_code=1)


def _drop_if_last(checkpoint: Path | None, output: Path, phase: Phase) -> None:
    if checkpoint is not None and checkpoint == last_checkpoint(output, phase):
        shutil.rmtree(checkpoint)


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
        "logging_steps": logging_steps(phase, training.saves),
        "save_strategy": "steps",
        "save_steps": save_steps(phase, training.saves),
        "report_to": "none",
        "use_cpu": True,
        "disable_gradient_checkpointing": True,
        "preprocessing_num_workers": 1,
        **(run.more or {}),
    }


def _counted(output: Path) -> dict[str, Any]:
    """Return what hsa-factory has counted of the data, of all data sets together."""
    found = _read(output / "hsa_report.json")["datasets"].values()
    kinds = {kind for data in found for kind in data["tokens"]}
    return {
        "total_tokens": sum(data["total_tokens"] for data in found),
        "tokens": {kind: sum(data["tokens"].get(kind, 0) for data in found) for kind in sorted(kinds)},
    }


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path)
    return content
