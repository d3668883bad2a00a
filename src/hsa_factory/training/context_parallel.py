"""A trainer whose processes share the tokens of rows: those of a group get the same batches, and count once in evaluation."""

from types import MethodType
from typing import Any

import torch

from ..models.context_parallel import ContextGroup
from ..models.enable import get_state


_Trainer: Any = object  # the trainer's own class stands behind the mixin

_OTHER_LOSSES = {
    "label_smoothing_factor": "the trainer smooths the logits of whole rows",
    "neftune_noise_alpha": "its noise depends on the length of the row, of which a process has a slice",
    "predict_with_generate": "a model whose rows are shared generates nothing",
    "use_liger_kernel": "its fused loss takes the labels of whole rows",
}


class ContextParallelMixin(_Trainer):
    """Counts groups of processes instead of processes, where the model shares its rows (`enable_hsa(…, context_parallel)`).

    The order of the samples is that of a run with one process a group, so that another number of ranks goes on with it.
    """

    _counts_labels = False  # then the number of processes is wanted, not that of groups

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        context = context_of(self.model)
        if context is not None:
            refuse_trl(type(self))
            check_arguments(self.args, self.compute_metrics is not None)
            if self.compute_loss_func is not None:
                raise ValueError(
                    "A loss of its own (`compute_loss_func`, TRL's `loss_type`) reads the logits of whole rows, of which a "
                    "process has a slice: it cannot be combined with context_parallel. Remove it."
                )
            check_group(context)
            share_batches(self.accelerator, context)
            self.gather_function = self.accelerator.gather_for_metrics

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch.

        Raises:
            ValueError: If its logits are asked for.
        """
        if context_of(self.model) is not None and not prediction_loss_only:
            raise ValueError(
                "Predictions are logits of whole rows, of which a process has a slice with context_parallel: only the loss "
                "is evaluated (`trainer.evaluate`; `prediction_loss_only=True`)."
            )
        return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)

    def floating_point_ops(self, inputs: Any) -> int:
        """Return what this process computes for a batch, of which the trainer adds up all processes'."""
        return int(super().floating_point_ops(inputs)) // self._sharing

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Count a batch's tokens once, though all processes of a group get it."""
        former = self.state.num_input_tokens_seen
        super()._track_num_input_tokens(inputs)
        self.state.num_input_tokens_seen = former + (self.state.num_input_tokens_seen - former) // self._sharing

    @property
    def _sharing(self) -> int:
        """How many processes share a row."""
        context = context_of(self.model)
        return 1 if context is None else context.size

    def get_cp_size(self) -> int:
        """Return how many processes share a row, by which the trainer divides its number of samples a step."""
        size: int = super().get_cp_size()
        return size if self._counts_labels else size * self._sharing

    def _get_num_items_in_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Count the labels of all processes: newer transformers divide them by `get_cp_size`, and multiply the loss by all."""
        self._counts_labels = True
        try:
            return super()._get_num_items_in_batch(*args, **kwargs)
        finally:
            self._counts_labels = False


def context_of(model: Any) -> ContextGroup | None:
    """Return the ranks that share the rows of a model; None: HSA is off, or each process has whole rows."""
    state = None if model is None else get_state(model)
    return None if state is None else state.context


def check_arguments(args: Any, has_metrics: bool) -> None:
    """Refuse `TrainingArguments` that need whole rows of logits.

    Args:
        args: The trainer's.
        has_metrics: Whether evaluation computes metrics from logits.

    Raises:
        ValueError: Naming the option.
    """
    for option, reason in _OTHER_LOSSES.items():
        if getattr(args, option, None):
            raise ValueError(f"`{option}` cannot be combined with context_parallel: {reason}. Remove it.")
    if has_metrics:
        raise ValueError(
            "Metrics of evaluation (`compute_metrics`, LLaMA-Factory's `compute_accuracy`) read the logits of whole rows, of "
            "which a process has a slice: they cannot be combined with context_parallel. Remove them; the loss is evaluated."
        )


def refuse_trl(trainer_class: type) -> None:
    """Refuse TRL's trainers, but for `SFTTrainer`.

    Args:
        trainer_class: The class of a trainer.

    Raises:
        ValueError: If it is another of TRL's, or made of one.
    """
    name = next((base.__name__ for base in trainer_class.__mro__ if base.__module__.split(".")[0] == "trl"), None)
    if name not in (None, "SFTTrainer"):
        raise ValueError(
            f"TRL's {name} computes its loss from the logits of whole rows, of which a process has a slice: it cannot be "
            "combined with context_parallel. Use transformers' Trainer or TRL's SFTTrainer."
        )


def check_group(context: ContextGroup) -> None:
    """Refuse a group that is no block of consecutive processes: batches are dealt to blocks.

    Raises:
        ValueError: If so.
    """
    ranks = torch.distributed.get_process_group_ranks(context.process_group)
    if ranks != list(range(ranks[0], ranks[0] + len(ranks))) or ranks[0] % len(ranks):
        raise ValueError(
            f"context_parallel: a trainer needs groups of consecutive processes (0 to {len(ranks) - 1}, and so on), got "
            f"{ranks}. torch.distributed.new_subgroups(group_size={len(ranks)}) makes such."
        )


def share_batches(accelerator: Any, context: ContextGroup) -> None:
    """Let an accelerator deal batches to groups of processes, and gather from one of each group.

    Args:
        accelerator: accelerate's, of one trainer.
        context: The group of this process.
    """
    from accelerate.data_loader import prepare_data_loader  # here: rows are encoded where no trainer is installed, too
    from accelerate.utils import gather_object, recursively_apply

    def prepare(self: Any, data_loader: Any, device_placement: bool | None = None, **kwargs: Any) -> Any:
        if getattr(data_loader, "_is_accelerate_prepared", False):
            return data_loader
        prepared = prepare_data_loader(
            data_loader,
            self.device,
            num_processes=self.num_processes // context.size,
            process_index=self.process_index // context.size,
            split_batches=self.split_batches,
            put_on_device=self.device_placement if device_placement is None else device_placement,
            rng_types=self.rng_types.copy(),
            dispatch_batches=False,  # one process would cut batches up for all the others
            even_batches=self.even_batches,
            use_seedable_sampler=self.use_seedable_sampler,
            data_seed=self.dataloader_config.data_seed,
            non_blocking=self.non_blocking,
            use_stateful_dataloader=self.use_stateful_dataloader,
        )
        self._dataloaders.append(prepared)
        return prepared

    def gather(self: Any, data: Any, use_gather_object: bool = False) -> Any:
        ending = self.gradient_state.end_of_dataloader and self.gradient_state.remainder > 0
        if use_gather_object:
            everything = gather_object(data)
            each = len(everything) // self.num_processes
            own = [one for place, one in enumerate(everything) if place // each % context.size == 0]
            return own[: self.gradient_state.remainder] if ending else own

        def once(tensor: torch.Tensor) -> torch.Tensor:
            by_group = tensor.view(self.num_processes // context.size, context.size, -1, *tensor.shape[1:])
            kept = by_group[:, 0].flatten(0, 1)
            return kept[: self.gradient_state.remainder] if ending else kept

        gathered: Any = recursively_apply(once, self.gather(data))
        return gathered

    accelerator.prepare_data_loader = MethodType(prepare, accelerator)
    accelerator.gather_for_metrics = MethodType(gather, accelerator)
