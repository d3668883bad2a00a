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


def numbered(document_ids: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
    """Return numbers from 1, and 0 at padding. (B, L) whole numbers and (B, L) bool → (B, L) int64."""
    if document_ids.numel() == 0:
        return document_ids.long()
    numbers = document_ids.long()
    return torch.where(is_real, numbers - numbers.min() + 1, 0)


def first_places(document_ids: torch.Tensor) -> torch.Tensor:
    """Return, for each token, the place in its row of its document's first token. (B, L) → (B, L) int64.

    Two numberings tell the same documents apart exactly where these are the same.
    """
    if document_ids.numel() == 0:
        return torch.zeros_like(document_ids, dtype=torch.long)

    order, starts = by_document(document_ids)
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(order)
    first = order.gather(1, torch.where(starts, index, 0).cummax(dim=1).values)
    return torch.empty_like(order).scatter_(1, order, first)


def positions_in_documents(document_ids: torch.Tensor) -> torch.Tensor:
    """Count, for each token, the earlier tokens of its document. (B, L) → (B, L) int64."""
    if document_ids.numel() == 0:
        return torch.zeros_like(document_ids)

    order, starts = by_document(document_ids)
    index = torch.arange(document_ids.shape[1], device=document_ids.device).expand_as(order)
    rank = index - torch.where(starts, index, 0).cummax(dim=1).values
    return torch.empty_like(rank).scatter_(1, order, rank)
