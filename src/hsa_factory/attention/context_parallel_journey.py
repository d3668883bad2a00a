"""Keys on their way to the ranks that see them, and their gradients on the way back, while something else is computed.

A journey is two steps of the autograd graph. In the forward pass the first sends and the second waits; in the backward pass
the second sends and the first waits. What is computed between the two overlaps with the message, both ways.
"""

from typing import Any

import torch
import torch.distributed as dist

from .context_parallel_plan import Route


PARTS = 2
"""Into how many parts a layer's heads are divided at most: all messages but the first overlap with attention."""


def number_of_parts(heads: int) -> int:
    """Return into how many equal parts a number of key/value heads is divided; the same on all ranks."""
    return max(number for number in range(1, PARTS + 1) if heads % number == 0)


class Journey:
    """The keys and values of some heads, from each rank to those that see them.

    Legend: B batch, Hkv key/value heads, S tokens of a slice, K keys received, D head size, E value head size.

    Args:
        route: Which keys go where.
        group: The ranks.
    """

    def __init__(self, route: Route, group: "dist.ProcessGroup") -> None:
        self.route, self.group = route, group
        self._head_size = 0
        self._message: _Message | None = None
        self._own: list[torch.Tensor] = []  # forwards, with room for what comes; backwards, the gradients so far

    def leave(self, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Begin. All ranks must call it, in the same order.

        Args:
            key: (B, Hkv, S, D).
            value: (B, Hkv, S, E).

        Returns:
            (0,), what `arrive` takes so that gradients find their way.
        """
        token: torch.Tensor = _Leave.apply(key, value, self)  # type: ignore[no-untyped-call]
        return token

    def arrive(self, token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Wait for what comes from earlier ranks, and return (B, Hkv, K + S, D) and (B, Hkv, K + S, E)."""
        key, value = _Arrive.apply(token, self)  # type: ignore[no-untyped-call]
        return key, value

    def send(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Send what others see, and meanwhile lay this rank's own keys where they stand."""
        route, self._head_size = self.route, key.shape[3]
        sent = [tensor[route.send_rows, :, route.send_places] for tensor in (key, value)]
        self._message = _Message(torch.cat(sent, dim=-1), route.got_counts, route.send_counts, self.group)
        self._own = []
        for tensor in (key, value):
            whole = tensor.new_zeros(*tensor.shape[:2], route.keys, tensor.shape[3])
            whole[:, :, route.room :] = tensor
            self._own.append(whole)

    def received(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all keys and values that this rank sees, once they are there."""
        route, (received, joined) = self.route, self._taken()
        for whole, columns in zip(joined, self._columns):
            whole[route.got_rows, :, route.got_places] = received[..., columns].to(whole.dtype)
        return joined[0], joined[1]

    def send_back(self, *grads: torch.Tensor) -> None:
        """Send the gradients of keys received to the ranks that they came from."""
        route = self.route
        got = [grad[route.got_rows, :, route.got_places] for grad in grads]
        self._message = _Message(torch.cat(got, dim=-1), route.send_counts, route.got_counts, self.group)
        self._own = [grad[:, :, route.room :].clone(memory_format=torch.contiguous_format) for grad in grads]

    def returned(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of the own keys and values, once those of other ranks are there."""
        route, (returned, own) = self.route, self._taken()
        start = 0
        # rank by rank: a key goes to each once, so that nothing is added in an order that may change
        for count in route.send_counts:
            part = slice(start, start := start + count)
            rows, places = route.send_rows[part], route.send_places[part]
            for grad, columns in zip(own, self._columns):
                grad[rows, :, places] += returned[part, :, columns].to(grad.dtype)
        return own[0], own[1]

    @property
    def _columns(self) -> tuple[slice, slice]:
        return slice(self._head_size), slice(self._head_size, None)

    def _taken(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Wait; return the message and what lay here meanwhile, of which nothing is kept."""
        assert self._message is not None, "nothing is under way"
        arrived, own = self._message.wait(), self._own
        self._message, self._own = None, []
        return arrived, own


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, key: torch.Tensor, value: torch.Tensor, journey: Journey) -> torch.Tensor:
        ctx.journey = journey
        journey.send(key, value)
        return key.new_empty(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, token: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *ctx.journey.returned(), None


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: torch.Tensor, journey: Journey) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.journey = journey
        return journey.received()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ctx.journey.send_back(*grads)
        return grads[0].new_zeros(0), None


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
