"""Sparse HSA attention in portable torch, forward and backward: exact, O(visible keys) time, O(L) memory.

A query sees few keys of two kinds. *Near* keys have a narrow window (NOISE): they lie in a strip of the original keys
that ends at the query. *Far* keys have no window, or a wide one (GLOBAL and LANDMARK): they are gathered once, in
order, so that those before a block of queries are one contiguous prefix. Queries are taken in chunks. A chunk's near
part is one batched product over small tiles, each with its own strip; its far part is a few large products. One
running maximum and sum joins the two, and the backward pass computes the probabilities anew from q, k and the rows'
log-sum-exp instead of keeping them (as in FlashAttention, arXiv 2205.14135).

What would otherwise be passes over the logits rides along as head dimensions: the far keys' bias, −decay·(i − j), has
rank two (as in FlashBias, arXiv 2505.12044) with positions counted from the chunk so that float32 is exact enough; in
the backward pass −lse turns logits into log-probabilities and −δ centres the gradient of the probabilities.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch

from .layout import Chunk, Layout, Sequence
from .plan import AttentionPlan


_LOG2_E = math.log2(math.e)
_OVERFLOW = 2.0**60


def blockwise_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    scale: float | None = None,
    sliding_window: int | None = None,
    neutral: bool = False,
) -> torch.Tensor:
    """Compute HSA attention block by block over the keys that are visible.

    Legend: B batch, H query heads, Hkv key/value heads, Q query length, L key length, D head size, E value head size.

    Args:
        query: (B, H, Q, D), float64, float32, bfloat16 or float16; half precision is computed in float32.
        key: (B, Hkv, L, D).
        value: (B, Hkv, L, E).
        plan: Built for these lengths. What stands at padding is never read.
        scale: Factor of q·k; None: 1/√D.
        sliding_window: The model's own: keys with d ≥ sliding_window are invisible. None: no such limit.
        neutral: Leave HSA's own rules out: plain causal attention within documents.

    Returns:
        (B, H, Q, E) in the dtype of `query`, zeros at padding. Cannot be differentiated twice.

    Time O(L·(M/2 + W)) for M far keys and a near window of W; memory O(L) beyond the result and the gradients.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _run(query, key, value, plan.layout(sliding_window, neutral), scale)


@torch.compiler.disable
def _run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float) -> torch.Tensor:
    return _BlockwiseAttention.apply(query, key, value, layout, scale)


class _BlockwiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float
    ) -> torch.Tensor:
        work = _Workspace(query)
        new = torch.empty if layout.is_complete else torch.zeros  # rows at padding are not written
        output = new(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
        log_sum_exp = torch.empty(query.shape[:-1], dtype=work.dtype, device=query.device)
        with torch.autocast(query.device.type, enabled=False):
            for sequence in layout.sequences:
                row = sequence.row
                part = _Forward(sequence, query[row], key[row], value[row], scale, work)
                part.run(output[row], log_sum_exp[row])
        ctx.save_for_backward(query, key, value, output, log_sum_exp)
        ctx.layout, ctx.scale = layout, scale
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, log_sum_exp = ctx.saved_tensors
        work = _Workspace(query)
        grad_query = torch.empty_like(query) if ctx.layout.is_complete else torch.zeros_like(query)
        grad_key, grad_value = (torch.zeros_like(tensor, dtype=work.dtype) for tensor in (key, value))
        with torch.autocast(query.device.type, enabled=False):
            for sequence in ctx.layout.sequences:
                row = sequence.row
                part = _Backward(sequence, query[row], key[row], value[row], ctx.scale, work)
                part.run(
                    output[row], log_sum_exp[row], grad_output[row], grad_query[row], grad_key[row], grad_value[row]
                )
        grad_key.div_(_LOG2_E)  # the queries were scaled for a softmax of base 2
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


class _Workspace:
    """Buffers that all blocks of a pass share, so that the big intermediates stay in the processor's cache."""

    def __init__(self, like: torch.Tensor) -> None:
        self.dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.device = like.device
        self.buffers: dict[str, torch.Tensor] = {}

    def get(self, name: str, *shape: int) -> torch.Tensor:
        """Return an uninitialised contiguous tensor; it is valid until the same name is asked for again."""
        size = 1
        for length in shape:
            size *= length
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self.buffers[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return buffer[:size].view(shape)


class _Pass:
    """What both passes over a sequence of one row need.

    Rows of a chunk are kept as (Hkv, tiles · G · tile rows, size): all groups of a tile, then the next tile's.
    """

    def __init__(
        self,
        sequence: Sequence,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        work: _Workspace,
    ) -> None:
        self.sequence, self.query, self.key, self.value = sequence, query, key, value
        self.scale, self.work = scale, work
        self.heads, self.head_size = query.shape[0], query.shape[2]
        self.kv_heads, self.value_size = key.shape[0], value.shape[2]
        self.groups = self.heads // self.kv_heads
        self.bias_size = 2 if sequence.far_has_decay else 0

        # far keys: k, 1, −decay, decay·(j − start); far values: v, 1
        self.far_number = sequence.far_index.numel()
        places = sequence.places
        self.far_places = (
            sequence.far_index + places.start if isinstance(places, slice) else places[sequence.far_index]
        )
        self.far_key = work.get("far_key", self.kv_heads, self.far_number, self.head_size + 1 + self.bias_size)
        self.far_value = work.get("far_value", self.kv_heads, self.far_number, self.value_size + 1)
        for buffer, source in ((self.far_key, key), (self.far_value, value)):
            size = source.shape[2]
            buffer[..., :size] = source.index_select(1, self.far_places)
            buffer[..., size] = 1
        if self.bias_size:
            self.far_key[..., -2] = -_LOG2_E * sequence.far_decay

    def load_queries(self, chunk: Chunk) -> torch.Tensor:
        """Return a chunk's rows (Hkv, R, D + 1 + bias dimensions): scaled q, 0, i − start, 1; fit the far keys to it."""
        sequence = self.sequence
        rows = chunk.tiles * sequence.tile
        query = self.work.get("query", self.kv_heads, self.groups * rows, self.far_key.shape[2])
        self.load(sequence.take_queries(self.query, chunk.start, chunk.stop), query, chunk)
        query[..., : self.head_size].mul_(self.scale * _LOG2_E)
        query[..., self.head_size] = 0
        if self.bias_size:
            first = sequence.positions[chunk.start]
            numbers = query.new_zeros(rows)
            numbers[: chunk.stop - chunk.start] = sequence.positions[chunk.start : chunk.stop] - first
            columns = self.by_tile(query, chunk)
            columns[..., -2] = numbers.view(chunk.tiles, sequence.tile)
            columns[..., -1] = 1
            self.far_key[..., -1] = (sequence.far_positions - first) * (_LOG2_E * sequence.far_decay)
        return query

    def tiles(self, rows: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        """View rows of a chunk as (Hkv · tiles, G · tile rows, size)."""
        return rows.view(self.kv_heads * chunk.tiles, -1, rows.shape[2])

    def by_tile(self, rows: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        """View rows of a chunk as (Hkv, G, tiles, tile rows, size)."""
        shape = (self.kv_heads, chunk.tiles, self.groups, self.sequence.tile, rows.shape[2])
        return rows.view(shape).transpose(1, 2)

    def load(self, source: torch.Tensor, rows: torch.Tensor, chunk: Chunk) -> None:
        """Copy (H, queries, size) into the first columns of rows of a chunk; rows that do not exist become 0."""
        by_tile = self.by_tile(rows, chunk)[..., : source.shape[2]]
        for target, part in self._pieces(by_tile, source, chunk):
            target.copy_(part)
        missing = chunk.tiles * self.sequence.tile - source.shape[1]
        if missing:
            self.by_tile(rows, chunk)[:, :, -1, -missing:] = 0

    def store(self, rows: torch.Tensor, chunk: Chunk, target: torch.Tensor) -> None:
        """Copy rows of a chunk into (H, queries, size)."""
        sequence = self.sequence
        result = target if isinstance(sequence.places, slice) else None
        if result is not None:
            result = sequence.take_queries(target, chunk.start, chunk.stop)
        else:
            result = self.work.get("gathered", self.heads, chunk.stop - chunk.start, rows.shape[2])
        for part, place in self._pieces(self.by_tile(rows, chunk), result, chunk):
            place.copy_(part)
        if not isinstance(sequence.places, slice):
            sequence.put_queries(target, result.to(target.dtype), chunk.start, chunk.stop)

    def _pieces(
        self, by_tile: torch.Tensor, flat: torch.Tensor, chunk: Chunk
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Pair whole tiles, and the rest of the last one, of both views (the second is (H, queries, size))."""
        tile = self.sequence.tile
        flat = flat.view(self.kv_heads, self.groups, *flat.shape[1:])
        whole, rest = divmod(chunk.stop - chunk.start, tile)
        pairs = []
        if whole:
            pairs.append((by_tile[:, :, :whole], flat[:, :, : whole * tile].unflatten(2, (whole, tile))))
        if rest:
            pairs.append((by_tile[:, :, whole, :rest], flat[:, :, whole * tile :]))
        return pairs

    def strips(self, name: str, source: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        """Copy each tile's strip of keys or values and a column of ones: (Hkv · tiles, strip columns, size + 1)."""
        sequence, size = self.sequence, source.shape[2]
        start, stop = chunk.start - sequence.window, chunk.start + chunk.tiles * sequence.tile
        inside = sequence.take(source, max(start, 0), min(stop, sequence.length))
        if start < 0 or stop > sequence.length:
            inside = torch.nn.functional.pad(inside, (0, 0, max(-start, 0), max(stop - sequence.length, 0)))
        buffer = self.work.get(name, self.kv_heads, chunk.tiles, sequence.strip, size + 1)
        buffer[..., :size] = inside.unfold(1, sequence.strip, sequence.tile).transpose(2, 3)
        buffer[..., size] = 1
        return buffer.flatten(0, 1)

    def near_logits(self, query: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        """Compute the biased logits (Hkv · tiles, G · tile rows, strip columns) of a chunk's near keys."""
        keys = self.strips("near_key", self.key, chunk)
        rows = self.tiles(query, chunk)[..., : self.head_size + 1]
        logits = self.work.get("near_logits", *rows.shape[:2], self.sequence.strip)
        torch.bmm(rows, keys.transpose(1, 2), out=logits)
        shape = (self.kv_heads, chunk.tiles, self.groups, self.sequence.tile, logits.shape[2])
        logits.view(shape).add_(chunk.near_bias)
        return logits

    def far_panels(self, chunk: Chunk) -> Iterator[tuple[slice, slice, torch.Tensor | None]]:
        """Yield what a chunk sees of the far keys, panel by panel: the rows, the far keys and their bias."""
        group = self.groups * self.sequence.tile
        for block in chunk.blocks:
            rows = slice(block.tiles.start * group, block.tiles.stop * group)
            first_biased = block.far_stop - (0 if block.bias is None else block.bias.shape[-1])
            for start in range(block.far_start, block.far_stop, block.panel):
                stop = min(start + block.panel, block.far_stop)
                bias = None
                if stop > first_biased:
                    bias = block.bias[..., max(start - first_biased, 0) : stop - first_biased]
                yield rows, slice(start, stop), bias

    def far_logits(self, rows: torch.Tensor, far: slice, bias: torch.Tensor | None) -> torch.Tensor:
        """Compute the biased logits (Hkv, R, C) of a block's rows (Hkv, R, size) and far keys."""
        keys = self.far_key[:, far]
        logits = self.work.get("far_logits", self.kv_heads, rows.shape[1], keys.shape[1])
        torch.bmm(rows, keys.transpose(1, 2), out=logits)
        if bias is not None:
            tiles, _, tile, columns = bias.shape
            logits.view(self.kv_heads, tiles, self.groups, tile, -1)[..., -columns:].add_(bias)
        return logits


class _Forward(_Pass):
    def run(self, output: torch.Tensor, log_sum_exp: torch.Tensor) -> None:
        """Write a sequence's rows of (H, Q, E) and (H, Q)."""
        sequence, work, head_size, value_size = self.sequence, self.work, self.head_size, self.value_size
        for chunk in sequence.chunks(self.heads):
            query = self.load_queries(chunk)
            logits = self.near_logits(query, chunk)
            maximum = logits.amax(-1, keepdim=True)
            logits.sub_(maximum).exp2_()
            result = work.get("result", self.kv_heads, query.shape[1], value_size + 1)
            torch.bmm(logits, self.strips("near_value", self.value, chunk), out=self.tiles(result, chunk))
            maximum = maximum.view(self.kv_heads, -1, 1)
            torch.neg(maximum, out=query[..., head_size : head_size + 1])

            for rows, far, bias in self.far_panels(chunk):
                probabilities = self.far_logits(query[:, rows], far, bias).exp2_()
                block = work.get("block_result", self.kv_heads, probabilities.shape[1], value_size + 1)
                torch.bmm(probabilities, self.far_value[:, far], out=block)
                if float(block[..., -1].amax()) > _OVERFLOW:
                    self._far_above_near(query[:, rows], far, bias, result[:, rows], maximum[:, rows], block)
                result[:, rows].add_(block)

            total = result[..., -1:]
            self.store(result[..., :-1].div_(total), chunk, output)
            self.store(maximum.add_(total.log2()), chunk, log_sum_exp[..., None])

    def _far_above_near(
        self,
        query: torch.Tensor,
        far: slice,
        bias: torch.Tensor | None,
        result: torch.Tensor,
        maximum: torch.Tensor,
        block: torch.Tensor,
    ) -> None:
        """Do a block again whose far logits are so far above the near ones that their exponentials overflow."""
        query[..., self.head_size] = 0
        logits = self.far_logits(query, far, bias)
        new = torch.maximum(logits.amax(-1, keepdim=True), maximum)
        torch.bmm(logits.sub_(new).exp2_(), self.far_value[:, far], out=block)
        result.mul_((maximum - new).exp2_())
        maximum.copy_(new)


class _Backward(_Pass):
    def run(
        self,
        output: torch.Tensor,
        log_sum_exp: torch.Tensor,
        grad_output: torch.Tensor,
        grad_query: torch.Tensor,
        grad_key: torch.Tensor,
        grad_value: torch.Tensor,
    ) -> None:
        """Add a sequence's gradients to (H, Q, D), (Hkv, L, D) and (Hkv, L, E)."""
        sequence, work, head_size, value_size = self.sequence, self.work, self.head_size, self.value_size
        # transposed: the faster product
        far_grad_key = torch.zeros(self.kv_heads, head_size, self.far_number, dtype=work.dtype, device=work.device)
        far_grad_value = far_grad_key.new_zeros(self.kv_heads, value_size, self.far_number)
        for chunk in sequence.chunks(self.heads):
            query = self.load_queries(chunk)
            minus_lse = sequence.take_queries(log_sum_exp, chunk.start, chunk.stop).neg()[..., None]
            self.load(minus_lse, query[..., head_size:], chunk)

            grad_rows = sequence.take_queries(grad_output, chunk.start, chunk.stop)
            grad = work.get("grad", self.kv_heads, query.shape[1], value_size + 1)
            self.load(grad_rows, grad, chunk)
            product = grad_rows.to(work.dtype) * sequence.take_queries(output, chunk.start, chunk.stop)
            self.load(product.sum(-1, keepdim=True).neg_(), grad[..., value_size:], chunk)

            result = work.get("result", self.kv_heads, query.shape[1], head_size)
            self._near(chunk, query, grad, result, grad_key, grad_value)
            for rows, far, bias in self.far_panels(chunk):
                queries, grads = query[:, rows], grad[:, rows]
                probabilities = self.far_logits(queries, far, bias).exp2_()
                columns = work.get("columns", self.kv_heads, value_size, probabilities.shape[2])
                torch.bmm(grads[..., :value_size].transpose(1, 2), probabilities, out=columns)
                far_grad_value[..., far].add_(columns)
                grad_logits = work.get("far_grad_logits", *probabilities.shape)
                torch.bmm(grads, self.far_value[:, far].transpose(1, 2), out=grad_logits)
                grad_logits.mul_(probabilities)
                block = work.get("block_result", self.kv_heads, queries.shape[1], head_size)
                torch.bmm(grad_logits, self.far_key[:, far, :head_size], out=block)
                result[:, rows].add_(block)
                columns = work.get("columns", self.kv_heads, head_size, probabilities.shape[2])
                torch.bmm(queries[..., :head_size].transpose(1, 2), grad_logits, out=columns)
                far_grad_key[..., far].add_(columns)
            self.store(result.mul_(self.scale), chunk, grad_query)

        grad_key.index_add_(1, self.far_places, far_grad_key.transpose(1, 2))
        grad_value.index_add_(1, self.far_places, far_grad_value.transpose(1, 2))

    def _near(
        self,
        chunk: Chunk,
        query: torch.Tensor,
        grad: torch.Tensor,
        result: torch.Tensor,
        grad_key: torch.Tensor,
        grad_value: torch.Tensor,
    ) -> None:
        head_size, grads = self.head_size, self.tiles(grad, chunk)
        probabilities = self.near_logits(query, chunk).exp2_()
        self._add_strips(torch.bmm(probabilities.transpose(1, 2), grads[..., :-1]), chunk, grad_value)
        values = self.strips("near_value", self.value, chunk)
        grad_logits = self.work.get("near_grad_logits", *probabilities.shape)
        torch.bmm(grads, values.transpose(1, 2), out=grad_logits)
        grad_logits.mul_(probabilities)
        keys = self.work.get("near_key", values.shape[0], values.shape[1], head_size + 1)
        torch.bmm(grad_logits, keys[..., :head_size], out=self.tiles(result, chunk))
        queries = self.tiles(query, chunk)[..., :head_size]
        self._add_strips(torch.bmm(grad_logits.transpose(1, 2), queries), chunk, grad_key)

    def _add_strips(self, strips: torch.Tensor, chunk: Chunk, target: torch.Tensor) -> None:
        """Add the overlapping strips (Hkv · tiles, strip columns, size) of a chunk to (Hkv, L, size)."""
        sequence, size = self.sequence, strips.shape[2]
        tile, window, length = sequence.tile, sequence.window, chunk.tiles * sequence.tile
        strips = strips.view(self.kv_heads, chunk.tiles, sequence.strip, size)
        joined = self.work.get("joined", self.kv_heads, sequence.strip + length, size).zero_()
        for first in range(0, sequence.strip, tile):
            columns = strips[:, :, first : first + tile]
            place = joined[:, first : first + length].view(self.kv_heads, chunk.tiles, tile, size)
            place[:, :, : columns.shape[2]].add_(columns)
        start = chunk.start - window
        stop = min(chunk.stop, sequence.length)
        sequence.add(target, joined[:, max(-start, 0) : stop - start], max(start, 0), stop)
