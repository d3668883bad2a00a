"""Where the tokens of each type stand in what is measured: scattered or in runs, in turns as long as real ones."""

from dataclasses import dataclass

import torch

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules


RUN = 100  # tokens of memory at a time
# Tokens of each turn of two household trajectories of 24 replies, with Qwen's tokenizer and images of 302 tokens.
REAL_TURNS = [
    *(602, 136, 140, 134, *(150, 411, 139) * 6, 150, 411),
    *(602, 136, 392, *(150, 410, 391, 411, 392) * 4, 150),
]
SHARE_WITH_TURNS = 0.05


@dataclass(frozen=True)
class Case:
    """A row to attend over.

    Attributes:
        share: Of GLOBAL and LANDMARK tokens.
        layout: ``scattered`` or ``runs`` with a window of NOISE, or ``turns`` or ``synthetic turns`` without.
        noise_turns: None: NOISE has its window.
    """

    share: float
    layout: str
    noise_turns: int | None = None

    @property
    def is_scattered(self) -> bool:
        """Whether memory stands token by token."""
        return self.layout != "runs"

    def config(self) -> HSAConfig:
        """Return the rules."""
        return HSAConfig() if self.noise_turns is None else HSAConfig(noise_turns=self.noise_turns)

    def plan(self, length: int, device: str | torch.device = "cpu") -> AttentionPlan:
        """Return the plan of a row of this length."""
        types, turns = make_types(length, self.share, self.is_scattered).to(device), None
        if self.noise_turns is not None:
            turns = make_turns(length, self.layout == "turns").to(device)
        return AttentionPlan.from_inputs(types, turn_ids=turns)


def make_types(length: int, share: float, scattered: bool, seed: int = 0) -> torch.Tensor:
    """Return (1, L) types of which a share is GLOBAL or LANDMARK, token by token or in runs."""
    generator = torch.Generator().manual_seed(seed)
    number = length if scattered else -(-length // RUN)
    memory = torch.zeros(number, dtype=torch.bool)
    memory[torch.randperm(number, generator=generator)[: round(share * number)]] = True
    kinds = torch.where(memory, 1, 2)
    kinds[0] = 0
    return kinds[None] if scattered else kinds.repeat_interleave(RUN)[None, :length]


def make_turns(length: int, real: bool, seed: int = 0) -> torch.Tensor:
    """Return (1, L) turn numbers: the lengths of real trajectories over and over, or drawn from 200 to 700 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(REAL_TURNS) if real else torch.randint(200, 701, (100,), generator=generator)
    lengths = lengths.repeat(-(-length // int(lengths.sum())))
    return torch.arange(len(lengths)).repeat_interleave(lengths)[None, :length]


def visible_pairs(plan: AttentionPlan, rules: LayerRules) -> int:
    """Count the (query, key) pairs that are visible."""
    return int((plan.last_seen(rules) - plan.positions + 1).sum())
