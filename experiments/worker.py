"""One stage in a process of its own: ``python -m experiments.worker OUT SETTINGS.json STAGE [PARENT]``."""

import json
import sys
from pathlib import Path

from .parent import end_with
from .plan import Plan
from .settings import settings_from
from .stages import run_stage


def main(out: str, settings: str, name: str, parent: str | None = None) -> None:
    """Do a stage's work.

    Args:
        out: Folder of the results.
        settings: File with `Settings`.
        name: The stage's.
        parent: Id of the process with which this one ends; None: it goes on alone.
    """
    if parent is not None:
        end_with(int(parent))
    import torch

    torch.set_num_threads(1)
    plan = Plan(settings_from(json.loads(Path(settings).read_text("utf-8"))))
    run_stage(plan.named(name), Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
