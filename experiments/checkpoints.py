"""Checkpoints of a phase: those that the curve plays, and those from which a training that was killed goes on."""

import json
import shutil
from pathlib import Path

from .settings import Phase


MOST, FEWEST = 150, 20
"""Steps between two checkpoints: what a killed training loses at most, where that divides the curve's steps."""

LOGGED = 50
"""Steps between two losses in the log, at most."""

TO_GO_ON = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
"""What a checkpoint holds besides the model; as large as two models, and of no use when the phase is done."""


def curve_steps(phase: Phase, saves: int) -> list[int]:
    """Return after which steps a checkpoint is kept, the last one included."""
    return sorted({*range(_interval(phase, saves), phase.steps + 1, _interval(phase, saves)), phase.steps})


def save_steps(phase: Phase, saves: int) -> int:
    """Return how many steps lie between two checkpoints, so that those of the curve are among them.

    Args:
        phase: Which.
        saves: How many the curve needs; 1: that of the last step, which is always saved.
    """
    if saves == 1:
        return min(phase.steps, MOST)
    interval = _interval(phase, saves)
    return max((steps for steps in range(FEWEST, MOST + 1) if interval % steps == 0), default=interval)


def logging_steps(phase: Phase, saves: int) -> int:
    """Return over how many steps a loss is the mean: such that a training which goes on has the losses of one in one go."""
    between = save_steps(phase, saves)
    return max(steps for steps in range(1, LOGGED + 1) if between % steps == 0)


def _interval(phase: Phase, saves: int) -> int:
    return max(phase.steps // saves, 1)


def is_trained(output: Path, phase: Phase) -> bool:
    """Whether a phase is done: its model is saved before its state is."""
    return _steps_done(output) == phase.steps


def last_checkpoint(output: Path, phase: Phase) -> Path | None:
    """Return the folder of the last whole checkpoint from which a phase can go on; None: it begins anew.

    One of the last step is none of these: a trainer that starts there would take a step more.
    """
    found = [path for step, path in checkpoints(output).items() if step < phase.steps and _is_whole(path, step)]
    return found[-1] if found else None


def remove_halves(output: Path) -> None:
    """Remove checkpoints that were being written when their process was killed."""
    for step, path in checkpoints(output).items():
        if not _is_whole(path, step):
            shutil.rmtree(path)


def checkpoints(output: Path) -> dict[int, Path]:
    """Return the folders of all checkpoints by their step, in order."""
    found = {int(path.name.rpartition("-")[2]): path for path in output.glob("checkpoint-*")}
    return dict(sorted(found.items()))


def keep_for_curve(output: Path, steps: list[int]) -> None:
    """Remove what is of no use when a phase is done: other checkpoints, and all that is there to go on."""
    for step, path in checkpoints(output).items():
        if step not in steps:
            shutil.rmtree(path)
        else:
            for name in TO_GO_ON:
                (path / name).unlink(missing_ok=True)


def _is_whole(path: Path, step: int) -> bool:
    return _steps_done(path) == step and all((path / name).is_file() for name in TO_GO_ON)


def _steps_done(folder: Path) -> int | None:
    """Return what a trainer's state says, which is written last; None: it is not there, or only a part of it."""
    try:
        steps: int = json.loads((folder / "trainer_state.json").read_text("utf-8"))["global_step"]
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return steps
