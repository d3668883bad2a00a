"""The ranks that share the tokens of every row: that they got the same rows, and what they cannot do."""

import logging
import zlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from ...attention import AttentionPlan
from ...attention.context_parallel import ContextPass, Traffic


logger = logging.getLogger(__name__)

_LABELS = ("labels", "shift_labels")
_FACTOR = 0x9E3779B97F4A7C1 | 1


class ContextGroup:
    """The ranks among which a model's rows are cut. It belongs to this process: it is not pickled with the model.

    Args:
        process_group: The ranks, in the order of their slices; 2 or more.

    Attributes:
        last: The last forward pass; None: there was none.
        given: The arguments, by name, of a forward under way of the model with its head, which has the labels; None: there is
            none.

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
        self.given: Mapping[str, Any] | None = None
        self._has_warned = False
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
            ValueError: On every rank, if the ranks were given different rows or labels.
        """
        types = {"semantic_ids": plan.semantic_ids, "document_ids": plan.document_ids, "turn_ids": plan.turn_ids}
        labels = {name: (self.given or {}).get(name) for name in _LABELS}
        self._check_same(plan, {**types, **inputs, **labels})
        self._earlier = self.totals()
        self.last = ContextPass(plan, self.process_group)
        return self.last

    def _check_same(self, plan: AttentionPlan, tensors: Mapping[str, Any]) -> None:
        """Compare what the ranks were given, in one collective.

        Numbers with a point are no reason to refuse: an encoder that draws at random (dropout), or adds up in any order, makes
        embeddings of its own on every rank, and each rank's slice of them is right.
        """
        parts = [torch.tensor([*plan.semantic_ids.shape, _shapes(tensors)]), *_digests(tensors)]
        own = torch.cat([part.to(plan.device) for part in parts])
        everyone = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(everyone, own, group=self.process_group)
        found = torch.stack(everyone).tolist()
        if any(one[:-1] != found[0][:-1] for one in found):
            shapes = ", ".join(f"{rows}×{length}" for rows, length, *_ in found)
            raise ValueError(
                f"Context parallelism: the {self.size} ranks of a group were given different rows (batch×length {shapes}). All of "
                "them need the same whole rows, tokens and labels, of which each takes its slice by itself: let the sampler or "
                "DistributedSampler count groups, not processes."
            )
        if any(one[-1] != found[0][-1] for one in found) and not self._has_warned:
            self._has_warned = True
            names = [name for name, value in tensors.items() if _is_floating(value)]
            logger.warning(
                f"Context parallelism: {', '.join(names)} differ between the {self.size} ranks of a group, tokens do not. That is "
                "right where an encoder before the model draws at random; else give all of them the same rows."
            )

    def totals(self) -> Traffic:
        """Return what all forward passes so far have moved."""
        total = Traffic()
        total.add(self._earlier)
        if self.last is not None:
            total.add(self.last.traffic())
        return total


def _shapes(tensors: Mapping[str, Any]) -> int:
    """Return one number of which tensors there are, and of what shape and kind."""
    given = [(name, (*value.shape,), str(value.dtype)) for name, value in tensors.items() if _is_tensor(value)]
    return zlib.crc32(repr(sorted(given)).encode())


def _digests(tensors: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return a number, (1,) int64, of all whole numbers by name, and one of those with a point."""
    totals = [torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)]
    for name, value in tensors.items():
        if _is_tensor(value):
            digest = zlib.crc32(name.encode()) * _digest(value)
            kind = int(_is_floating(value))
            totals[kind] = totals[kind].to(digest.device) + digest
    return totals


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _is_floating(value: Any) -> bool:
    return _is_tensor(value) and value.is_floating_point()


def _digest(tensor: torch.Tensor) -> torch.Tensor:
    """Return one number, (1,) int64, that differs where the values do, but for very rare chance.

    Of embeddings and pixels the numbers of each last dimension are added up first, bit by bit as they stand: a factor for each would
    take several times their memory.
    """
    if tensor.is_floating_point():
        bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        tensor = tensor.detach().contiguous().view(bits)
        tensor = tensor.sum(-1, dtype=torch.int64) if tensor.dim() else tensor
    values = tensor.long().flatten()
    factors = torch.arange(1, len(values) + 1, device=values.device) * _FACTOR
    return ((values + 1) * (factors ^ (factors >> 29))).sum()[None]
