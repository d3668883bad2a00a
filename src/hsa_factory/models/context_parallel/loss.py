"""The loss of whole rows, of whose tokens a rank has one slice: what a model returns is the loss that one process would."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from ...feedback import IGNORE_INDEX
from ..forward_pass import HSAState


_ATTRIBUTE = "_loss_function"  # where the setter of transformers' `loss_function` keeps it


class ContextLoss:
    """A model's `loss_function`: of its slice where a row is cut, else the one that it replaces.

    Its value is the loss of the whole rows, the same on every rank. Its gradient is R times that of the rank's own part, so
    that the mean over ranks, which DDP, FSDP and ZeRO take, is the gradient of the whole.

    Args:
        state: HSA's on the model.
        former: The function before it.
    """

    def __init__(self, state: HSAState, former: Any) -> None:
        self.state, self.former = state, former

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the loss. Arguments are those of `ForCausalLMLoss`: logits (B, S, V) of the slice, labels (B, L) of all.

        Raises:
            ValueError: If the model's loss is not the mean over tokens that parts can be added up to.
        """
        context = None if self.state.context is None else self.state.context.last
        if context is None:
            loss: torch.Tensor = self.former(logits, labels, *args, **kwargs)
            return loss
        if self.former is not ForCausalLMLoss:
            raise ValueError(
                f"{self.state.model_name} has a loss of its own ({getattr(self.former, '__name__', self.former)}), whose parts "
                "context parallelism cannot add up."
            )
        if logits.shape[1] != context.slices.size:
            raise ValueError(
                f"{self.state.model_name} returned logits of {logits.shape[1]} tokens for a slice of {context.slices.size}: "
                "`logits_to_keep` counts from the end of a row, which context_parallel cuts; leave it out."
            )
        following = kwargs.pop("shift_labels", None)
        following = F.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:] if following is None else following
        number = kwargs.pop("num_items_in_batch", None)
        if number is None:
            number = (following != IGNORE_INDEX).sum()
        own = context.slices.cut(following, IGNORE_INDEX)
        part = ForCausalLMLoss(logits, None, *args, shift_labels=own.contiguous(), num_items_in_batch=number, **kwargs)
        return of_whole(part, context.group)


def of_whole(part: torch.Tensor, group: "dist.ProcessGroup") -> torch.Tensor:
    """Return the sum of the ranks' parts, with R times the gradient of this rank's own: its mean over ranks is that of all."""
    whole: torch.Tensor = _Whole.apply(part, group)
    return whole


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: "dist.ProcessGroup") -> torch.Tensor:
        ctx.ranks = group.size()
        whole = part.clone()
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.ranks, None


def install_loss(base: PreTrainedModel, state: HSAState) -> None:
    """Let a model compute its loss by slices where rows are cut. Harmless to repeat."""
    if not isinstance(base.loss_function, ContextLoss):
        base.loss_function = ContextLoss(state, base.loss_function)


def remove_loss(base: PreTrainedModel) -> None:
    """Give a model its own loss back."""
    installed = vars(base).get(_ATTRIBUTE)
    if isinstance(installed, ContextLoss):
        delattr(base, _ATTRIBUTE)
        if base.loss_function is not installed.former:
            base.loss_function = installed.former
