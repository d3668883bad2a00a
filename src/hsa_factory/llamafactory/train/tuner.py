"""LLaMA-Factory's tuner: options are checked before anything is loaded, and before it branches off to a trainer."""

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import llamafactory.cli
import llamafactory.launcher
import llamafactory.train.tuner
from llamafactory.hparams import read_args

from ..model.loader import load_model_seam
from ..model.packing import check_packing
from ..options import check_options, check_stage, check_trainer, find_other_loss
from ..processes import starts_processes
from ..saved_files import with_whole_checkpoint
from ..seams import Seam
from ..state import Integration
from .context_parallel import share_rows
from .ray import ray_seams
from .reference import reference_seams
from .stages import STAGES


def train_seams(state: Integration) -> list[Seam]:
    """Return what is replaced in LLaMA-Factory's tuner and in the stages that are supported."""
    tuner = llamafactory.train.tuner
    return [
        Seam(llamafactory.cli, "main", _main),
        Seam(llamafactory.launcher, "launch", _launch),
        Seam(tuner, "get_train_args", partial(_get_train_args, state)),
        load_model_seam(tuner, state),  # of `export`
        *ray_seams(state),
        *reference_seams(state),
        *(seam for stage in STAGES.values() for seam in stage.seams(state)),
    ]


def _main(original: Any) -> None:
    """Refuse the variables by which LLaMA-Factory's command goes past its launcher."""
    check_trainer(None)
    original()


def _launch(original: Any) -> None:
    """Refuse to start processes in which nothing is installed; other commands run in this one.

    Raises:
        ValueError: Saying what to do.
    """
    if sys.argv[1:2] == ["train"] and starts_processes():
        raise ValueError(
            "LLaMA-Factory's launcher would start processes that know neither HSA nor Feedback. Run `hsa-factory train`, "
            "or call run_exp within integrate() in every process."
        )
    original()


def _get_train_args(state: Integration, original: Any, args: Any = None) -> Any:
    """Check everything that can be checked before data and model are loaded."""
    check_trainer(args)
    args = read_args(args)
    if isinstance(args, Mapping):
        check_stage(args.get("stage", "sft"))  # before LLaMA-Factory asks for what only a stage that is refused needs
        args = with_whole_checkpoint(args)
    parsed = original(args)
    model_args, data_args, training_args, finetuning_args, _ = parsed
    check_stage(finetuning_args.stage)
    hsa_config = state.resolve(model_args, training_args)
    check_options(model_args, data_args, training_args, finetuning_args, hsa_config)
    STAGES[finetuning_args.stage].check(state, finetuning_args)
    share_rows(state, model_args, training_args, finetuning_args)
    state.loss_elsewhere = find_other_loss(model_args, training_args, finetuning_args)
    if hsa_config is not None:
        check_packing(model_args, data_args)
    return parsed
