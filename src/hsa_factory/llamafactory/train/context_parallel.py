"""LLaMA-Factory with rows whose tokens several processes share: the groups, what cannot go with them, what they moved."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from ...models.context_parallel import ContextGroup
from ...training.context_parallel import ContextParallelMixin, check_arguments, context_of
from ...whole_files import write_whole
from ..data.report import REPORT_NAME
from ..state import Integration


STAGES = ("sft", "pt")

_REFUSED = {
    "enable_liger_kernel": "its fused loss takes the labels of whole rows",
    "compute_accuracy": "it reads the logits of whole rows",
    "use_dft_loss": "it computes the loss from the logits of whole rows",
    "use_eaft_loss": "it computes the loss from the logits of whole rows",
    "use_asft_loss": "it computes the loss from the logits of whole rows",
    "moe_aux_loss_coef": "the loss of a router is no sum over tokens",
    "do_predict": "a model whose rows are shared generates nothing",
}


def share_rows(state: Integration, model_args: Any, training_args: Any, finetuning_args: Any) -> None:
    """Make the groups of processes that share rows, if `hsa.context_parallel` asks for them.

    Raises:
        ValueError: Naming the option that cannot go with it, or the number of processes.
    """
    ranks = state.context_parallel
    state.context_group = None
    if ranks == 1 or state.hsa_config is None:
        return
    if finetuning_args.stage not in STAGES:
        raise ValueError(
            f"hsa.context_parallel supports {' and '.join(f'`stage: {name}`' for name in STAGES)}, not `stage: "
            f"{finetuning_args.stage}`, whose loss compares whole rows. Remove it."
        )
    for option, reason in _REFUSED.items():
        if any(getattr(args, option, None) for args in (model_args, training_args, finetuning_args)):
            raise ValueError(f"`{option}` cannot be combined with hsa.context_parallel: {reason}. Remove one of them.")
    check_arguments(training_args, has_metrics=False)
    processes = training_args.world_size
    if processes % ranks or not dist.is_initialized():
        raise ValueError(
            f"hsa.context_parallel = {ranks} needs a number of processes that is a multiple of {ranks}, each group of {ranks} "
            f"sharing its rows; this run has {processes}. Set NPROC_PER_NODE (with FORCE_TORCHRUN=1 where there are no GPUs), or "
            "change context_parallel."
        )
    state.context_group, _ = dist.new_subgroups(group_size=ranks)


@cache
def context_parallel_trainer(trainer_class: type) -> type:
    """Return LLaMA-Factory's trainer with the mixin."""
    return type(trainer_class.__name__, (ContextParallelMixin, trainer_class), {"__module__": __name__})


def report_traffic(state: Integration, trainer: Any) -> None:
    """Let a trainer write into ``hsa_report.json`` what its processes have moved, if they share rows."""
    context = context_of(trainer.model)
    if context is not None:
        trainer.add_callback(_TrafficCallback(context))


class _TrafficCallback(TrainerCallback):
    def __init__(self, context: ContextGroup) -> None:
        self._context = context

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Collect the counts of the ranks that share rows with the first process."""
        collected: list[Any] = [None] * self._context.size
        dist.all_gather_object(collected, self._context.totals().to_dict(), group=self._context.process_group)
        path = Path(args.output_dir) / REPORT_NAME
        if state.is_world_process_zero:
            values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            values["context_parallel"] = {"ranks": self._context.size, "by_rank": collected}
            write_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
