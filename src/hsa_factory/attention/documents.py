"""The tokens of a packed row by document."""

import torch


def by_document(document_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort the tokens of each row by document, each document's in their own order. O(L log L).

    Args:
        document_ids: (B, L) int64 or bool.

    Returns:
        (B, L) places of the tokens in that order, and (B, L) bool, True where one is the first of its document.
    """
    numbers = document_ids.long()
    order = torch.argsort(numbers, dim=1, stable=True)
    grouped = numbers.gather(1, order)
    starts = torch.ones_like(grouped, dtype=torch.bool)
    starts[:, 1:] = grouped[:, 1:] != grouped[:, :-1]
    return order, starts


def positions_in_documents(document_ids: torch.Tensor) -> torch.Tensor:
    """Count, for each token, the earlier tokens of its document. (B, L) → (B, L) int64."""
    if document_ids.numel() == 0:
        return torch.zeros_like(document_ids)

    order, starts = by_document(document_ids)
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(order)
    rank = index - torch.where(starts, index, 0).cummax(dim=1).values
    return torch.empty_like(rank).scatter_(1, order, rank)
