"""Attention of one slice of a row, whose other slices lie on other ranks: only keys that can still be seen are exchanged.

Each layer moves one message: the keys and values that a later rank sees, from the rank that has them, and in the backward
pass their gradients the other way. Memory keys go to every later rank, keys with a window to the next one, as far as the
window reaches over the cut. What is computed on a rank is attention with a plan that has gaps, by any backend.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from .api import run_attention
from .context_parallel_journey import Journey, number_of_parts
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

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rules: LayerRules,
        layer: int = 0,
        sinks: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Attend to the keys of this rank and to those of earlier ones that it sees. All ranks must call it, in the same order.

        Heads are taken in `PARTS`: what the next have to get is under way while these attend, in the backward pass likewise.

        Legend: B batch, H query heads, Hkv key/value heads, S tokens of a slice, D head size, E value head size.

        Args:
            query: (B, H, S, D).
            key: (B, Hkv, S, D).
            value: (B, Hkv, S, E).
            rules: Of the layer.
            layer: Its number, by which traffic is counted once.
            sinks: (H,) attention sinks; None: none.
            **options: Others of `run_attention`.

        Returns:
            (B, H, S, E).

        Raises:
            ValueError: If the keys are not those of a slice, or the backend cannot honour an option.
        """
        if key.shape[2] != self.slices.size:
            raise ValueError(
                f"Context parallelism cuts rows of {self.slices.length} tokens into slices of {self.slices.size}, but the "
                f"attention got {key.shape[2]} keys: the model does not run on its slice."
            )
        if rules not in self._routes:
            self._routes[rules] = Route(self._row, rules)
        self._layers.setdefault(rules, set()).add(layer)
        sent_as = torch.promote_types(key.dtype, value.dtype)  # autocast may have left keys in float32
        self._bytes_of_row = key.shape[1] * (key.shape[3] + value.shape[3]) * sent_as.itemsize

        route, parts = self._routes[rules], number_of_parts(key.shape[1])
        journeys = [Journey(route, self.group) for _ in range(parts)]
        left = [journey.leave(*kv) for journey, *kv in zip(journeys, key.chunk(parts, 1), value.chunk(parts, 1))]
        sinks_of = [None] * parts if sinks is None else sinks.chunk(parts)
        outputs = []
        for journey, token, queries, own_sinks in zip(journeys, left, query.chunk(parts, 1), sinks_of):
            keys, values = journey.arrive(token)
            route.plan.check(queries, keys)
            output, _ = run_attention(queries, keys, values, route.plan, rules, sinks=own_sinks, **options)
            outputs.append(output)
        return outputs[0] if parts == 1 else torch.cat(outputs, dim=1)

    def traffic(self) -> Traffic:
        """Return what the layers so far have moved forwards; a layer that is computed anew counts once."""
        total = Traffic()
        everything = self._row.plan.batch_size * (self.slices.ranks - 1) * self.slices.size
        for rules, route in self._routes.items():
            number = len(self._layers[rules])
            rows = [number * one for one in (sum(route.got_counts), sum(route.send_counts), everything)]
            total.add(Traffic(number, *rows, *(one * self._bytes_of_row for one in rows)))
        return total
