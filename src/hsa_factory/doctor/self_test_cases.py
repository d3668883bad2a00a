"""The rows of the self-test: what users have, small. All have one shape, so that a compiled kernel serves most of them."""

from dataclasses import dataclass

import torch

from ..attention import AttentionPlan, LayerRules
from ..config import HSAConfig


_TURN = 45  # tokens


@dataclass(frozen=True)
class Case:
    """Rows and rules. L is the number of keys.

    Attributes:
        name: What it is.
        rules: Of the layer.
        semantic_ids: (2, L) int64.
        attention_mask: (2, L) int64, as `AttentionPlan.from_inputs` takes it; None: no padding.
        turn_ids: (2, L) int64; None: the rules have no turns.
        queries: Q, the last of the tokens.
        poison: Whether NaN stands at padding.
    """

    name: str
    rules: LayerRules
    semantic_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    turn_ids: torch.Tensor | None
    queries: int
    poison: bool = False

    def plan(self, device: torch.device) -> AttentionPlan:
        """Make the plan on a device."""
        return AttentionPlan.from_inputs(
            self.semantic_ids.to(device),
            None if self.attention_mask is None else self.attention_mask.to(device),
            query_length=self.queries,
            turn_ids=None if self.turn_ids is None else self.turn_ids.to(device),
        )


def make_cases(length: int) -> list[Case]:
    """Return the cases, four query heads to two of keys.

    Args:
        length: Tokens of a row.
    """
    generator = torch.Generator().manual_seed(0)
    types = torch.multinomial(torch.tensor([0.05, 0.15, 0.8]), 2 * length, True, generator=generator).view(2, length)
    places = torch.arange(length).expand(2, length)
    turns = places // _TURN
    padded = torch.stack([places[0] >= length // 3, places[1] < length - length // 4]).long()
    packed = 1 + places // (length // 3 + 1)
    in_turns = LayerRules.of(HSAConfig(noise_turns=1, landmark_turns=3))
    defaults = LayerRules.of(HSAConfig())
    hiding = LayerRules.of(HSAConfig(hide=((0, 2), (1, 1))))
    sliding = LayerRules.of(HSAConfig(noise_turns=1), sliding_window=length // 3)
    return [
        Case("rows of odd length", defaults, types, None, None, length),
        Case("padding left and right, NaN there", defaults, types, padded, None, length, poison=True),
        Case("packed documents", defaults, types, packed, None, length),
        Case("turns", in_turns, types, None, turns, length),
        Case("turns in packed documents", in_turns, types, packed, turns, length),
        Case("turns within a sliding window", sliding, types, None, turns, length),
        Case("hide", hiding, types, None, None, length),
        Case("a later part of a row", defaults, types, None, None, length // 2),
    ]
