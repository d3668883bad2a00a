"""Which backend ``auto`` takes on this device, and why: asked of the code that decides."""

from dataclasses import dataclass

import torch

from ..attention import AttentionPlan, LayerRules
from ..attention.api import choose_backend
from ..config import HSAConfig


LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 65536, 131072)
_SPECIAL: tuple[tuple[str, list[str], float], ...] = (
    ("soft-capped logits (Gemma-2), attention sinks (gpt-oss) or output_attentions", ["such a model"], 0.0),
    ("attention dropout", [], 0.1),
)


@dataclass(frozen=True)
class Choice:
    """What ``auto`` takes.

    Attributes:
        case: Tokens of a row, or what else decides.
        backend: Its name.
        reason: Why.
    """

    case: int | str
    backend: str
    reason: str


def find_choices(device: torch.device, dtype: torch.dtype, head_size: int = 128) -> list[Choice]:
    """Ask what ``auto`` takes for rows of several lengths, all of whose tokens are NOISE, by the default rules.

    Args:
        device: Where.
        dtype: Of the model.
        head_size: Of the model.
    """
    rules = LayerRules.of(HSAConfig())
    choices = []
    for length in LENGTHS:
        query = torch.empty((), device=device, dtype=dtype).expand(1, 1, length, head_size)  # no memory
        plan = AttentionPlan.from_inputs(torch.full((1, length), 2, device=device))
        choices.append(Choice(length, *choose_backend(query, plan, rules)))
    for case, needs_reference, dropout in _SPECIAL:
        backend, reason = choose_backend(query, plan, rules, needs_reference, dropout)
        choices.append(Choice(case, backend, "no other can" if needs_reference else reason))
    return choices
