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
    if plan.has_gaps or not plan.has_packed_rows():  # with gaps, positions go on from document to document
        return plan.positions, None
    order, _ = by_document(plan.document_ids)
    numbers = torch.arange(plan.key_length, device=plan.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, numbers), order
