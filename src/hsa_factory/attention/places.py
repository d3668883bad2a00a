"""Where the tokens of a row stand, documents one after the other."""

import torch

from .documents import by_document
from .plan import AttentionPlan


def find_places(plan: AttentionPlan) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Number tokens so that a document's are consecutive, up to keys that are missing.

    Args:
        plan: The plan. Legend: B batch, L key length.

    Returns:
        The numbers, (B, L) int64, and (B, L) int64 the tokens in the order of their numbers; None: they stand in it.
    """
    if not plan.has_packed_rows():
        return plan.positions, None
    if plan.has_gaps:  # then positions go on from document to document
        return plan.positions, plan.positions.argsort(dim=1)
    order, _ = by_document(plan.document_ids)
    numbers = torch.arange(plan.key_length, device=plan.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, numbers), order
