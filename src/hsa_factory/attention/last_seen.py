"""Until when a key is seen: one number says what windows, turns, documents and a sliding window do to it.

As neither positions nor turn numbers fall within a document, the queries that see a key are one interval, from itself on.
"""

import torch

from .by_type import by_type
from .documents import by_document
from .layer_rules import LayerRules


def last_seen(
    semantic_ids: torch.Tensor,
    document_ids: torch.Tensor,
    positions: torch.Tensor,
    turn_ids: torch.Tensor | None,
    rules: LayerRules,
    is_whole: bool = False,
) -> torch.Tensor:
    """Find the last token that sees each key. O(L log L); nothing waits for the device.

    Legend: B batch, L length.

    Args:
        semantic_ids: (B, L) int64, the `SemanticType` of each key.
        document_ids: (B, L) int64 or bool, 0 is padding. Documents may interleave.
        positions: (B, L) int64, the token's place in its document, going up within it; with gaps if keys are missing.
        turn_ids: (B, L) integers, never falling within a document. None: the rules have no turns.
        rules: What holds in the layer. What `hide` takes away is left out.
        is_whole: Whether each row is one document without padding, so that nothing need be sorted.

    Returns:
        (B, L) int64, the position, in the key's document, of the last of the tokens given that sees it, or, by its
        window, would see it if it were there; at most the document's last. −1 at padding.

    Example:
        NOISE with `noise_turns=1` in a document of turns 0 0 1 1 2: keys 0 and 1 are last seen by token 3, the others by
        token 4.
    """
    if semantic_ids.numel() == 0:
        return torch.zeros_like(positions)

    if is_whole:
        return _last_seen_in_rows(semantic_ids, positions, turn_ids, rules)
    order, starts = by_document(document_ids)
    types, places = semantic_ids.gather(1, order), positions.gather(1, order)
    last = places + by_type(types, rules.window_reach, torch.int64)
    if turn_ids is not None:
        turns = turn_ids.long().masked_fill(document_ids == 0, 0).gather(1, order)
        reach = by_type(types, rules.turn_reach, torch.int64)
        in_turns = places.gather(1, _last_in_turns(turns, reach, starts))
        last = torch.where(reach < 0, last, torch.maximum(last, in_turns))
        last = torch.minimum(last, places + rules.sliding_reach)

    last = torch.minimum(last, places.gather(1, _document_ends(starts)))
    last = torch.empty_like(last).scatter_(1, order, last)
    return last.masked_fill_(document_ids == 0, -1)


def _last_seen_in_rows(
    types: torch.Tensor, places: torch.Tensor, turn_ids: torch.Tensor | None, rules: LayerRules
) -> torch.Tensor:
    """Return what `last_seen` does, for rows of one document without padding."""
    last = places + by_type(types, rules.window_reach, torch.int64)
    if turn_ids is not None:
        turns, reach = turn_ids.long(), by_type(types, rules.turn_reach, torch.int64)
        after = torch.searchsorted(turns, torch.minimum(turns + reach, turns[:, -1:]), right=True)
        in_turns = places.gather(1, after.sub_(1).clamp_(min=0))
        last = torch.where(reach < 0, last, torch.maximum(last, in_turns))
        last = torch.minimum(last, places + rules.sliding_reach)
    return torch.minimum(last, places[:, -1:])


def _last_in_turns(turns: torch.Tensor, reach: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Return, for tokens sorted by document, where the last token of the document stands that is `reach` turns later."""
    turns = turns - turns.amin(dim=1, keepdim=True)
    highest = turns.amax(dim=1, keepdim=True)
    first = starts.cumsum(1) * (highest + 1)  # so that turn numbers go up from one document to the next
    wanted = first + torch.minimum(turns + reach, highest)
    return torch.searchsorted(first + turns, wanted, right=True).sub_(1).clamp_(min=0)


def _document_ends(starts: torch.Tensor) -> torch.Tensor:
    """Return, for tokens sorted by document, where the last token of each one's document stands."""
    length = starts.shape[1]
    index = torch.arange(length, device=starts.device).expand_as(starts)
    is_end = torch.ones_like(starts)
    is_end[:, :-1] = starts[:, 1:]
    return torch.where(is_end, index, length).flip(1).cummin(dim=1).values.flip(1)
