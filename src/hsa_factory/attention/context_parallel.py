"""Attention of one slice of a row, whose other slices lie on other ranks: only keys that can still be seen are exchanged.

Each layer moves one message: the keys and values that a later rank sees, from the rank that has them, and in the backward
pass their gradients the other way. Memory keys go to every later rank, keys with a window to the next one, as far as the
window reaches over the cut. What is computed on a rank is attention with a plan that has gaps, by any backend.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from .context_parallel_plan import Route, Row, Slices
from .layer_rules import LayerRules
from .plan import AttentionPlan


@dataclass
class Traffic:
    """What one rank moves forwards, in layers that are each counted: the backward pass moves as much the other way.

    Attributes:
        layers: How many layers these are, of all forward passes counted.
        rows_received: Keys (with their values) that came from earlier ranks.
        rows_sent: Keys that went to later ranks; one that went to two counts twice.
        rows_all_gather: Keys that an all-gather would have brought.
        bytes_received: As rows.
        bytes_sent: As rows.
        bytes_all_gather: As rows.
    """

    layers: int = 0
    rows_received: int = 0
    rows_sent: int = 0
    rows_all_gather: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    bytes_all_gather: int = 0

    def add(self, other: "Traffic") -> None:
        """Add another's counts."""
        for name, value in other.to_dict().items():
            setattr(self, name, getattr(self, name) + value)

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)

    def __str__(self) -> str:
        """Say it in a line, a layer in the mean."""
        layers = max(self.layers, 1)
        return (
            f"{self.rows_received / layers:.0f} rows ({self.bytes_received / layers / 1e6:.3f} MB) received and "
            f"{self.rows_sent / layers:.0f} ({self.bytes_sent / layers / 1e6:.3f} MB) sent a layer; an all-gather would bring "
            f"{self.rows_all_gather / layers:.0f} ({self.bytes_all_gather / layers / 1e6:.3f} MB)"
        )


class ContextPass:
    """One forward pass of one rank of a group that shares the tokens of every row.

    Args:
        plan: Of the whole rows, the same on every rank.
        group: The ranks, in the order of their slices.

    Attributes:
        slices: How the rows are cut.
    """

    def __init__(self, plan: AttentionPlan, group: "dist.ProcessGroup") -> None:
        self.group = group
        self.slices = Slices(plan.key_length, group.size(), group.rank())
        self._row = Row(plan, self.slices)
        self._routes: dict[LayerRules, Route] = {}
        self._layers: dict[LayerRules, set[int]] = {}
        self._bytes_of_row = 0

    def exchange(
        self, key: torch.Tensor, value: torch.Tensor, rules: LayerRules, layer: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor, AttentionPlan]:
        """Put the keys of earlier ranks that this one sees before its own. All ranks must call it, in the same order.

        Legend: B batch, Hkv key/value heads, S tokens of a slice, K keys received, D head size, E value head size.

        Args:
            key: (B, Hkv, S, D).
            value: (B, Hkv, S, E).
            rules: Of the layer.
            layer: Its number, by which traffic is counted once.

        Returns:
            (B, Hkv, K + S, D), (B, Hkv, K + S, E) and the plan for them.

        Raises:
            ValueError: If the keys are not those of a slice.
        """
        if key.shape[2] != self.slices.size:
            raise ValueError(
                f"Context parallelism cuts rows of {self.slices.length} tokens into slices of {self.slices.size}, but the "
                f"attention got {key.shape[2]} keys: the model does not run on its slice."
            )
        if rules not in self._routes:
            self._routes[rules] = Route(self._row, rules)
        self._layers.setdefault(rules, set()).add(layer)
        self._bytes_of_row = key.shape[1] * (key.shape[3] + value.shape[3]) * key.element_size()
        route = self._routes[rules]
        keys, values = _Exchange.apply(key, value, route, self.group)  # type: ignore[no-untyped-call]
        return keys, values, route.plan

    def traffic(self) -> Traffic:
        """Return what the layers so far have moved forwards; a layer that is computed anew counts once."""
        total = Traffic()
        everything = self._row.plan.batch_size * (self.slices.ranks - 1) * self.slices.size
        for rules, route in self._routes.items():
            number = len(self._layers[rules])
            rows = [number * one for one in (sum(route.got_counts), sum(route.send_counts), everything)]
            total.add(Traffic(number, *rows, *(one * self._bytes_of_row for one in rows)))
        return total


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, key: torch.Tensor, value: torch.Tensor, route: Route, group: "dist.ProcessGroup"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.route, ctx.group = route, group
        ctx.head_size = size = key.shape[3]
        sent = [tensor[route.send_rows, :, route.send_places] for tensor in (key, value)]
        message = _Message(torch.cat(sent, dim=-1), route.got_counts, route.send_counts, group)
        joined = []
        for tensor in (key, value):  # while the message is under way
            whole = tensor.new_zeros(*tensor.shape[:2], route.keys, tensor.shape[3])
            whole[:, :, route.room :] = tensor
            joined.append(whole)
        received = message.wait()
        for whole, columns in zip(joined, (slice(size), slice(size, None))):
            whole[route.got_rows, :, route.got_places] = received[..., columns]
        return joined[0], joined[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        route: Route = ctx.route
        got = [grad[route.got_rows, :, route.got_places] for grad in grads]
        message = _Message(torch.cat(got, dim=-1), route.send_counts, route.got_counts, ctx.group)
        own = [grad[:, :, route.room :].clone(memory_format=torch.contiguous_format) for grad in grads]
        returned, start = message.wait(), 0
        # rank by rank: a key goes to each once, so that nothing is added in an order that may change
        for count in route.send_counts:
            part = slice(start, start := start + count)
            rows, places = route.send_rows[part], route.send_places[part]
            for grad, columns in zip(own, (slice(ctx.head_size), slice(ctx.head_size, None))):
                grad[rows, :, places] += returned[part, :, columns]
        return own[0], own[1], None, None


class _Message:
    """Rows (n, …) on their way to other ranks, those for each rank together; what comes back are those of the others, (m, …)."""

    def __init__(
        self, rows: torch.Tensor, got_counts: list[int], send_counts: list[int], group: "dist.ProcessGroup"
    ) -> None:
        self._sent = rows.contiguous()  # kept until it has gone
        self._received = rows.new_empty(sum(got_counts), *rows.shape[1:])
        self._work = dist.all_to_all_single(
            self._received, self._sent, got_counts, send_counts, group=group, async_op=True
        )

    def wait(self) -> torch.Tensor:
        """Return the rows received, once they are there."""
        self._work.wait()
        return self._received
