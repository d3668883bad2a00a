"""HSA as the two functions that flex attention takes: which keys a query sees, and how they fade."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...attention.layer_rules import LayerRules


_FAR = 2**30  # above every distance and number of turns

Mod = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """Where queries and keys of a forward are to be found.

    Legend: N queries, those beyond the end of a request included.

    Attributes:
        row: (N,) int64, the row of each query's request in the tables.
        position: (N,) int32, of each query in its request; -1: it is none.
        logical: (pages,) int32, the number within its request of each page that is read.
        page_size: Tokens of a page.
        types: (rows, length) uint8, of the tokens of each request.
        turns: (rows, length) int64, their turn numbers; None: the rules have no turns.
    """

    row: torch.Tensor
    position: torch.Tensor
    logical: torch.Tensor
    page_size: int
    types: torch.Tensor
    turns: torch.Tensor | None = None


def mods_of(layout: Layout, rules: LayerRules) -> tuple[Mod, Mod | None]:
    """Return the mask and the score function of a layer; keys are numbered as they lie in the cache.

    Only pages of the query's own request may be put to them: of another's they know nothing.

    Args:
        layout: Of the forward.
        rules: Of the layer.

    Returns:
        The mask; the score, None where nothing fades.
    """
    row, position, types = layout.row, layout.position, layout.types
    device = types.device
    window = torch.tensor([min(reach, _FAR) for reach in rules.window_reach], dtype=torch.int32, device=device)
    decay = torch.tensor(rules.decays, dtype=torch.float32, device=device)
    place = _place(layout)

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        key = place(k)
        distance = position[q] - key
        return (distance >= 0) & (distance <= window[types[row[q], key].int()])

    def score_mod(
        score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> torch.Tensor:
        key = place(k)
        return score - decay[types[row[q], key].int()] * (position[q] - key)

    mask = mask_mod
    if rules.has_turns:
        mask = _with_turns(layout, rules, window)
    if rules.hide:
        mask = _hiding(layout, rules, mask)
    return mask, score_mod if any(rules.decays) else None


def _place(layout: Layout) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what finds the position of a key in its request."""
    logical, size = layout.logical, layout.page_size
    return lambda k: logical[k // size] * size + k % size


def _with_turns(layout: Layout, rules: LayerRules, window: torch.Tensor) -> Mod:
    row, position, types, turns = layout.row, layout.position, layout.types, layout.turns
    assert turns is not None, "rules with turns come with a table of turns"
    place = _place(layout)
    reach = torch.tensor([min(turn, _FAR) for turn in rules.turn_reach], dtype=torch.int32, device=types.device)
    sliding = min(rules.sliding_reach, _FAR)

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        key, request = place(k), row[q]
        kind = types[request, key].int()
        distance = position[q] - key
        later = turns[request, position[q].clamp(min=0)] - turns[request, key]
        is_near = (distance <= window[kind]) | (later <= reach[kind])
        return (distance >= 0) & is_near & (distance <= sliding)

    return mask_mod


def _hiding(layout: Layout, rules: LayerRules, mask: Mod) -> Mod:
    row, position, types = layout.row, layout.position, layout.types
    place = _place(layout)
    pairs = [[(query, key) in rules.hide for key in range(3)] for query in range(3)]
    hidden = torch.tensor(pairs, dtype=torch.bool, device=types.device)

    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        key, request = place(k), row[q]
        is_hidden = hidden[types[request, position[q].clamp(min=0)].int(), types[request, key].int()]
        return mask(b, h, q, k) & (~is_hidden | (position[q] == key))

    return mask_mod
