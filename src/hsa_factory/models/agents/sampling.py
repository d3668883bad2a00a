"""Which token comes next: the likeliest, or one drawn with a row's own random numbers."""

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Sampler:
    """Chooses the next tokens of a batch.

    Args:
        temperature: 0: the likeliest token.
        top_k: Draw from the k likeliest; None: from all.
        top_p: Draw from the likeliest that together have this probability; None: from all.
        processors: What changes the scores before, as transformers' `LogitsProcessor`: called with the tokens of the replies
            under way, (B, n), and the scores, (B, V).

    Raises:
        ValueError: If a value is not allowed.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        processors: Sequence[Processor] = (),
    ) -> None:
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not temperature >= 0:
            raise ValueError(f"temperature = {temperature!r} is not allowed: a number ≥ 0 (0: greedy).")
        if temperature == 0 and (top_k is not None or top_p is not None):
            raise ValueError("top_k and top_p need a temperature above 0: at 0 the likeliest token is taken.")
        self.is_greedy = temperature == 0
        self.processors = list(processors)
        warpers: list[Any] = []
        if not self.is_greedy:
            warpers += [TemperatureLogitsWarper(float(temperature))] if temperature != 1 else []
            warpers += [TopKLogitsWarper(top_k)] if top_k is not None else []
            warpers += [TopPLogitsWarper(float(top_p))] if top_p is not None else []
        self._warpers = warpers

    def limited_to(self, choices: "Choices") -> "Sampler":
        """Return one that chooses only what fits some choices."""
        limited = copy.copy(self)
        limited.processors = [*self.processors, choices]
        return limited

    def choose(
        self, scores: torch.Tensor, written: torch.Tensor, sources: Sequence[random.Random | None]
    ) -> list[int]:
        """Return each row's next token.

        Args:
            scores: (B, V).
            written: (B, n) int64, tokens of the replies so far.
            sources: Each row's random numbers; None: the row is not written, and gives 0.

        Raises:
            ValueError: If a row has no token left to choose; names its place in the batch.
        """
        scores = scores.float()
        for processor in self.processors:
            scores = processor(written, scores)
        best = scores.argmax(dim=-1)
        if self.is_greedy:
            return [token if source else 0 for token, source in zip(best.tolist(), sources)]
        for warper in self._warpers:
            scores = warper(written, scores)
        weights = scores.double().softmax(dim=-1).cumsum(dim=-1)
        drawn = [source.random() if source else 0.0 for source in sources]
        targets = torch.tensor(drawn, dtype=torch.double, device=scores.device)[:, None] * weights[:, -1:]
        tokens = torch.searchsorted(weights, targets, right=True).clamp(max=scores.shape[-1] - 1)
        return [token if source else 0 for token, source in zip(tokens[:, 0].tolist(), sources)]


class Choices:
    """Lets a reply be one of some texts only.

    Args:
        choices: For each row the tokens of what it may say; None: anything.
        stop_id: What ends a reply.
    """

    def __init__(self, choices: Sequence[Sequence[Sequence[int]] | None], stop_id: int) -> None:
        self._choices = [None if row is None else [(*choice, stop_id) for choice in row] for row in choices]

    def __call__(self, written: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores, (B, V), with −∞ for what fits no choice after (B, n) tokens."""
        number = written.shape[1]
        allowed = torch.full_like(scores, float("-inf"))
        for row, (choices, tokens) in enumerate(zip(self._choices, written.tolist())):
            fitting = [
                choice[number] for choice in choices or () if [*choice[:number]] == tokens and len(choice) > number
            ]
            if fitting:
                allowed[row, fitting] = 0
            else:  # anything goes, or the row has ended
                allowed[row] = 0
        return scores + allowed
