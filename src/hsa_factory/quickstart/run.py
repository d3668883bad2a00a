"""`hsa-factory quickstart`: build tiny models, train four of them with HSA and Feedback, show what came out."""

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..user_errors import UserError
from .recipes import DATA_DIR, RECIPES, Recipe, write_recipes


if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from .display import Outcome

MADE = ("models", "data", "configs", "runs", "logs", "loss.png")
"""What a quickstart writes into its directory, and all that ``--overwrite`` removes from it."""

_NEEDED = ("llamafactory", "rich", "matplotlib", "torchvision")
_LOG_LINES = 30


def run_quickstart(
    output_dir: str | Path = "hsa_quickstart", seed: int = 0, epochs: float | None = None, overwrite: bool = False
) -> int:
    """Train a tiny Qwen3 and a tiny Qwen2.5-VL, each whole and with LoRA, on the CPU and without a network.

    Args:
        output_dir: Where models, data, training files, results, logs and the plot go.
        seed: Decides the models' weights and the order of the samples.
        epochs: Passes over the 24 trajectories; None: what each training file says.
        overwrite: Whether to replace an earlier quickstart in that directory.

    Returns:
        0 if all four runs end well and every loss falls by a third or more, 1 if not.

    Raises:
        UserError: Before anything is started, if a package is missing or the directory holds an earlier quickstart.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"quickstart: {', '.join(missing)} not installed; run: pip install 'hsa-factory[llamafactory]'"
        )

    output_dir = Path(output_dir)
    present = [output_dir / name for name in MADE if (output_dir / name).exists()]
    if present and not overwrite:
        raise UserError(
            f"quickstart: {output_dir} already holds {', '.join(path.name for path in present)}; "
            "choose another --output-dir, or --overwrite."
        )
    for path in present:
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    from rich.console import Console

    from .display import plot_losses, progress_display

    console = Console(highlight=False)
    console.print(
        f"[bold]hsa-factory quickstart[/]: two tiny models, four runs with HSA and Feedback, on the CPU, "
        f"in [bold]{output_dir}[/]; a minute or two.",
        soft_wrap=True,
    )
    started = time.monotonic()
    paths = _prepare(output_dir, seed, epochs)
    outcomes = []
    with progress_display(console) as progress:
        tasks = {
            recipe.name: progress.add_task(recipe.title, start=False, total=None, step="", loss="", note="waiting")
            for recipe in RECIPES
        }
        for recipe in RECIPES:
            log = output_dir / "logs" / f"{recipe.name}.log"
            outcome = _train(recipe, paths[recipe.name], output_dir, log, progress, tasks[recipe.name])
            if isinstance(outcome, int):
                break
            outcomes.append(outcome)
    if isinstance(outcome, int):
        _explain_failure(console, recipe, log, outcome)
        return 1

    plot_losses(outcomes, output_dir / "loss.png")
    _summarise(console, outcomes, output_dir, time.monotonic() - started)
    return 0 if all(outcome.learnt for outcome in outcomes) else 1


def _prepare(output_dir: Path, seed: int, epochs: float | None) -> dict[str, Path]:
    """Write the data, the models and the training files."""
    from transformers.utils import logging

    from ..tiny import build_tokenizer, save_tiny

    logging.disable_progress_bar()
    data_dir = output_dir / "data"
    shutil.copytree(DATA_DIR, data_dir)
    texts = (data_dir / "corpus.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    tokenizer = build_tokenizer(texts)
    for model_type in dict.fromkeys(recipe.model_type for recipe in RECIPES):
        save_tiny(model_type, output_dir / "models" / model_type, texts, seed=seed, tokenizer=tokenizer)
    (output_dir / "logs").mkdir()
    return write_recipes(output_dir, data_dir, seed, epochs)


def _train(
    recipe: Recipe, config: Path, output_dir: Path, log: Path, progress: "Progress", task: "TaskID"
) -> "Outcome | int":
    """Run one training file in a process of its own and follow its log; return the exit code if it fails."""
    from .display import Outcome, read_log

    result = output_dir / "runs" / recipe.name
    started = time.monotonic()
    progress.start_task(task)
    progress.update(task, note="loading")
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, "-m", "hsa_factory.cli", "train", str(config)]
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=_environment())
        try:
            while process.poll() is None:
                _show(progress, task, read_log(result / "trainer_log.jsonl"))
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()

    seconds = time.monotonic() - started
    entries = read_log(result / "trainer_log.jsonl")
    _show(progress, task, entries)
    progress.stop_task(task)
    if process.returncode != 0:
        progress.update(task, note="[red]failed[/]")
        return process.returncode

    trained, total = _parameters(log)
    report = result / "hsa_report.json"
    content = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    losses = [entry["loss"] for entry in entries]
    outcome = Outcome(recipe.name, recipe.title, losses, seconds, trained, total, content)
    progress.update(task, note="[green]done[/]" if outcome.learnt else "[red]learnt too little[/]")
    return outcome


def _environment() -> dict[str, str]:
    """Return the run's environment: the CPU, and nothing from the network.

    One thread, unless the user says otherwise: so small matrices gain nothing from more, and where other programs
    use the cores as well, threads that wait for each other make a step ten times slower.
    """
    fixed = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {"OMP_NUM_THREADS": "1", **os.environ, **fixed}


def _show(progress: "Progress", task: "TaskID", entries: list[dict]) -> None:
    if entries:
        step, steps = entries[-1]["current_steps"], entries[-1]["total_steps"]
        progress.update(
            task,
            total=steps,
            completed=step,
            step=f"{step}/{steps}",
            loss=f"loss {entries[-1]['loss']:.2f}",
            note="" if step < steps else "saving",
        )


def _parameters(log: Path) -> tuple[int | None, int | None]:
    """Read LLaMA-Factory's count of trained and of all parameters off its log."""
    text = log.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"trainable params: ([\d,]+) \|\| all params: ([\d,]+)", text)
    if found is None:
        return None, None
    trained, total = (int(number.replace(",", "")) for number in found.groups())
    return trained, total


def _explain_failure(console: "Console", recipe: Recipe, log: Path, code: int) -> None:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    console.print(f"\n[red]{recipe.title} failed[/] (exit code {code}). The end of {log}:\n", soft_wrap=True)
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _summarise(console: "Console", outcomes: list["Outcome"], output_dir: Path, seconds: float) -> None:
    from .display import REQUIRED_FALL, data_table, run_table

    console.print()
    console.print(run_table(outcomes))
    console.print()
    console.print(data_table(outcomes))
    for outcome in outcomes:
        if not outcome.learnt:
            console.print(
                f"[red]{outcome.title}: the loss fell by {outcome.fall:.0%}, less than {REQUIRED_FALL:.0%}.[/] "
                f"See {output_dir / 'logs' / outcome.name}.log",
                soft_wrap=True,
            )
    config = shlex.quote(str(output_dir / "configs" / f"{RECIPES[0].name}.yaml"))
    console.print(f"\n{seconds:.0f} seconds in all. Where to look next:")
    for what, where in (
        ("the loss curves", str(output_dir / "loss.png")),
        ("the training files", f"{output_dir / 'configs'}{os.sep}*.yaml"),
        ("what the model sees, token by token", f"hsa-factory inspect {config}"),
        ("train one again, changed", f"hsa-factory train {config} hsa.noise_window=20"),
        ("the trained models and their logs", f"{output_dir / 'runs'}, {output_dir / 'logs'}"),
        ("the documentation", "docs/"),
    ):
        console.print(f"  {what:<36} {where}", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``hsa-factory quickstart``.

    Args:
        argv: Arguments; None: those of the process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="hsa-factory quickstart",
        description="Train tiny models with HSA and Feedback: offline, on the CPU, in a minute or two.",
    )
    parser.add_argument("--output-dir", default="hsa_quickstart", help="where everything goes (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier quickstart in that directory")
    parser.add_argument("--seed", type=int, default=0, help="decides weights and sample order (default: %(default)s)")
    parser.add_argument("--epochs", type=float, help="passes over the data (default: what the training files say)")
    arguments = parser.parse_args(argv)
    return run_quickstart(arguments.output_dir, arguments.seed, arguments.epochs, arguments.overwrite)
