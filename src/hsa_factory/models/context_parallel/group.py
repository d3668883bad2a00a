"""The ranks that share the tokens of every row: that they got the same rows, and what they cannot do."""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from ...attention import AttentionPlan
from ...attention.context_parallel import ContextPass, Traffic


_FACTOR = 0x9E3779B97F4A7C1 | 1


class ContextGroup:
    """The ranks among which a model's rows are cut. It belongs to this process: it is not pickled with the model.

    Args:
        process_group: The ranks, in the order of their slices; 2 or more.

    Attributes:
        last: The last forward pass; None: there was none.

    Raises:
        ValueError: If it has one rank only, or this process is not in it.
    """

    def __init__(self, process_group: "dist.ProcessGroup") -> None:
        if not isinstance(process_group, dist.ProcessGroup):
            raise ValueError(
                f"context_parallel must be a torch.distributed process group, got {type(process_group).__name__}: that of "
                "the ranks that share a row."
            )
        if process_group.size() < 2:
            raise ValueError("context_parallel: the process group has one rank only; it needs two or more.")
        self.process_group = process_group
        self.last: ContextPass | None = None
        self._earlier = Traffic()

    @property
    def size(self) -> int:
        """R, the number of ranks."""
        return self.process_group.size()

    @property
    def rank(self) -> int:
        """Which slice of a row is this process's."""
        return self.process_group.rank()

    def begin(self, plan: AttentionPlan, inputs: Mapping[str, Any]) -> ContextPass:
        """Begin a forward pass over the same rows on all ranks.

        Args:
            plan: Of the whole rows.
            inputs: The forward's arguments by name.

        Raises:
            ValueError: On every rank, if the ranks were given different rows.
        """
        tensors = [plan.semantic_ids, plan.document_ids, plan.turn_ids]
        parts = [
            torch.tensor(plan.semantic_ids.shape),
            *(_digest(tensor) for tensor in tensors),
            digest_of_inputs(inputs),
        ]
        check_same(torch.cat([part.to(plan.device) for part in parts]), self.process_group)
        self._earlier = self.totals()
        self.last = ContextPass(plan, self.process_group)
        return self.last

    def totals(self) -> Traffic:
        """Return what all forward passes so far have moved."""
        total = Traffic()
        total.add(self._earlier)
        if self.last is not None:
            total.add(self.last.traffic())
        return total


def check_same(own: torch.Tensor, process_group: "dist.ProcessGroup") -> None:
    """Refuse rows that are not the same on all ranks of a group.

    Args:
        own: (n,) int64: batch size, length, and what this rank's rows come to.
        process_group: The ranks; all of them must call it.

    Raises:
        ValueError: On every rank.
    """
    everyone = [torch.empty_like(own) for _ in range(process_group.size())]
    dist.all_gather(everyone, own, group=process_group)
    found = torch.stack(everyone).tolist()
    if any(one != found[0] for one in found):
        shapes = ", ".join(f"{rows}×{length}" for rows, length, *_ in found)
        raise ValueError(
            f"Context parallelism: the {process_group.size()} ranks of a group were given different rows (batch×length {shapes}). "
            "All of them need the same whole rows, tokens and labels, of which each takes its slice by itself: let the sampler or "
            "DistributedSampler count groups, not processes."
        )


def digest_of_inputs(inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return one number, (1,) int64, of all tensors that a forward is given, by name.

    Args:
        inputs: Arguments by name.
    """
    total = torch.zeros(1, dtype=torch.int64)
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            total = total + zlib.crc32(name.encode()) * _digest(value).cpu()
    return total


def _digest(tensor: torch.Tensor | None) -> torch.Tensor:
    """Return one number, (1,) int64, that differs where the values do, but for very rare chance.

    Of embeddings and pixels the numbers of each last dimension are added up first, bit by bit as they stand: a factor for each would
    take several times their memory.
    """
    if tensor is None:
        return torch.zeros(1, dtype=torch.int64)
    if tensor.is_floating_point():
        bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        tensor = tensor.detach().contiguous().view(bits)
        tensor = tensor.sum(-1, dtype=torch.int64) if tensor.dim() else tensor
    values = tensor.long().flatten()
    factors = torch.arange(1, len(values) + 1, device=values.device) * _FACTOR
    return ((values + 1) * (factors ^ (factors >> 29))).sum()[None]
