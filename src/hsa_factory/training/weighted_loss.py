"""The loss of tokens that have weights: the mean of weight · loss over the sum of weights, however a batch is cut up."""

from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy, pad

from ..feedback import IGNORE_INDEX
from ..models.context_parallel import ContextGroup
from ..models.context_parallel.loss import of_whole
from .columns import LOSS_WEIGHTS_COLUMN
from .context_parallel import ContextParallelMixin, context_of


def weighted_loss(
    outputs: Any,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    context: ContextGroup | None = None,
) -> torch.Tensor:
    """Compute the loss of a batch, as transformers' `compute_loss_func` does.

    Args:
        outputs: The model's, with `logits` (B, L, V), each of the token that follows.
        labels: (B, L); `IGNORE_INDEX` is not trained.
        num_items_in_batch: Sum of the weights of all tokens of the step, those of other micro-batches and processes
            included; None: of this batch.
        weights: (B, L) what the loss of each label is multiplied by; None: by 1.
        label_smoothing: As the trainer's `label_smoothing_factor`.
        context: The ranks that share the tokens of every row, if they do: the logits are those of the own slice, and the
            gradient is R times that of its part. None: the logits are those of whole rows.

    Returns:
        A number, float32, with a gradient even if nothing is trained.

    Raises:
        ValueError: If the model computes more than the loss of its logits, or returns none.
    """
    logits = outputs.get("logits")
    if logits is None or outputs.get("aux_loss") is not None:
        raise ValueError(
            "Messages have weights other than 0 and 1, but this model "
            + ("returns no logits" if logits is None else "adds the loss of its router (`output_router_logits`)")
            + ": its loss cannot be weighed. Remove the weights."
        )
    following = _following(labels, IGNORE_INDEX, logits.device)
    weight = torch.ones_like(following).float() if weights is None else _following(weights, 0, logits.device)
    weight = weight.masked_fill(following == IGNORE_INDEX, 0)
    total = weight.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=logits.device)
    if context is not None and context.last is not None:
        slices = context.last.slices
        following, weight = slices.cut(following, IGNORE_INDEX), slices.cut(weight)
    is_trained = following != IGNORE_INDEX
    losses = cross_entropy(
        logits[is_trained].float(), following[is_trained], reduction="none", label_smoothing=label_smoothing
    )
    loss = (losses * weight[is_trained]).sum() / total
    return loss if context is None else of_whole(loss, context.process_group)


def _following(tensor: torch.Tensor, value: float, device: torch.device) -> torch.Tensor:
    """Return for each token, (B, L), what stands at the one that follows; `value` at the last."""
    return pad(tensor.to(device)[:, 1:], (0, 1), value=value)


class WeightedLossMixin(ContextParallelMixin):
    """Weighs the loss of batches with `loss_weights`; all else is left to the trainer it is mixed into.

    Args:
        loss_elsewhere: Why the run's loss cannot be weighed; empty: it can. An error, if a batch has weights.

    Attributes:
        compute_loss_func: The trainer's.
    """

    compute_loss_func: Any

    def __init__(self, *args: Any, loss_elsewhere: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loss_elsewhere = loss_elsewhere or find_other_loss(self.args)
        if not self.loss_elsewhere and self.compute_loss_func is not None:
            self.loss_elsewhere = "the trainer has a loss of its own (`compute_loss_func`)."
        self._weigh = partial(
            weighted_loss, label_smoothing=self.args.label_smoothing_factor, context=context_of(self.model)
        )
        # Rows of a stream have weights where they need them: one process must not count otherwise than another.
        self._counts_weights = not self.loss_elsewhere and _has_weights(self.train_dataset)
        if self._counts_weights:
            # for the whole run: it tells the trainer that the loss is that of all micro-batches
            self.compute_loss_func = self._weigh

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss, by the batch's weights if it has any."""
        weights = inputs.pop(LOSS_WEIGHTS_COLUMN, None)
        if weights is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        if self.loss_elsewhere:
            raise ValueError(f"Messages have weights other than 0 and 1, but {self.loss_elsewhere}")
        former = self.compute_loss_func
        self.compute_loss_func = partial(self._weigh, weights=weights)
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self.compute_loss_func = former

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """Return the sum of the weights of all batches of a step, on all processes."""
        has_weights = self._counts_weights or any(LOSS_WEIGHTS_COLUMN in batch for batch in batch_samples)
        if not has_weights or not batch_samples or "labels" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        total = torch.stack([_sum_of_weights(batch) for batch in batch_samples]).sum().to(device)
        if self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        return total if parallelism is None else total / parallelism.non_data_parallel_size


def find_other_loss(training_args: Any) -> str:
    """Return why the loss of a run with these `TrainingArguments` cannot be weighed, naming the option; empty: it can."""
    loss_type = getattr(training_args, "loss_type", None)  # of TRL
    if loss_type not in (None, "nll", "chunked_nll"):
        return f"`loss_type: {loss_type}` computes another loss."
    if getattr(training_args, "use_liger_kernel", False):
        return "`use_liger_kernel` computes the loss without the logits of each token."
    parallelism = getattr(training_args, "parallelism_config", None)
    if parallelism is not None and getattr(parallelism, "sp_size", 1) > 1:
        return "`parallelism_config` splits the sequence, and its loss is computed in pieces."
    if training_args.world_size > 1 and not training_args.average_tokens_across_devices:
        return (
            "`average_tokens_across_devices: false` lets every process divide by the weights of its own tokens, so that "
            "the loss would depend on their number."
        )
    if training_args.n_gpu > 1:
        return (
            "several GPUs in one process share a batch without its weights: start one process a GPU (torchrun, or "
            "FORCE_TORCHRUN=1 with LLaMA-Factory)."
        )
    return ""


def _has_weights(data: Any) -> bool:
    """Say whether rows of a data set may have weights: those of a stream, or made when they are asked for, may."""
    if isinstance(data, (list, tuple)):
        return any(row.get(LOSS_WEIGHTS_COLUMN) is not None for row in data)
    columns = getattr(data, "column_names", None)
    is_known = data is None or (columns is not None and hasattr(data, "__len__"))
    return not is_known or LOSS_WEIGHTS_COLUMN in (columns or ())


def _sum_of_weights(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    is_trained = batch["labels"][:, 1:] != IGNORE_INDEX
    weights = batch.get(LOSS_WEIGHTS_COLUMN)
    if weights is None:
        return is_trained.sum().float()
    return weights[:, 1:][is_trained].sum().float()
