"""Sparse HSA attention in portable torch, forward and backward: exact, O(visible keys) time, O(L) memory.

A query sees few keys of two kinds. *Near* keys have a narrow window (NOISE), or stand in the query's own tile: they lie in
a strip of the original keys that ends at the query. *Far* keys are seen for ever (GLOBAL and LANDMARK), for some turns, or
in a wide window: they are gathered once in bands of the same reach, in order, so that what a block of queries sees of a
band is one contiguous part. Queries are taken in chunks. A chunk's near part is one batched product over small tiles, each
with its own strip; its far part is a few large products. One running maximum and sum joins the two, and the backward pass
computes the probabilities anew from q, k and the rows' log-sum-exp instead of keeping them (as in FlashAttention, arXiv
2205.14135).

What would otherwise be passes over the logits rides along as head dimensions: the far keys' bias, −decay·(i − j), has
rank two (as in FlashBias, arXiv 2505.12044) with positions counted from the chunk so that float32 is exact enough; in
the backward pass −lse turns logits into log-probabilities and −δ centres the gradient of the probabilities.
"""

from typing import Any

import torch

from ...layer_rules import LayerRules
from ...plan import AttentionPlan
from .far_keys import LOG2_E
from .layout import Layout
from .segment import QueryChunk
from .tiles import Pass


_OVERFLOW = 2.0**60


def blockwise_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    rules: LayerRules,
    scale: float | None = None,
) -> torch.Tensor:
    """Compute HSA attention block by block over the keys that are visible.

    Legend: B batch, H query heads, Hkv key/value heads, Q query length, L key length, D head size, E value head size.

    Args:
        query: (B, H, Q, D), float64, float32, bfloat16 or float16; half precision is computed in float32.
        key: (B, Hkv, L, D).
        value: (B, Hkv, L, E).
        plan: Built for these lengths. What stands at padding is never read.
        rules: Of the layer.
        scale: Factor of q·k; None: 1/√D.

    Returns:
        (B, H, Q, E) in the dtype of `query`, zeros at padding. Cannot be differentiated twice.

    Time O(visible pairs + L·W) for a near window of W; memory O(L) beyond the result and the gradients.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    output: torch.Tensor = _run(query, key, value, plan.once(Layout, rules), scale)
    return output


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float) -> torch.Tensor:
    output: torch.Tensor = _BlockwiseAttention.apply(query, key, value, layout, scale)  # type: ignore[no-untyped-call]
    return output


class _BlockwiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scale: float
    ) -> torch.Tensor:
        new = torch.empty if layout.is_complete else torch.zeros  # rows at padding are not written
        output = new(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
        with layout.workspaces.lend(query) as work, torch.autocast(query.device.type, enabled=False):
            log_sum_exp = torch.empty(query.shape[:-1], dtype=work.dtype, device=query.device)
            for segment in layout.segments:
                row = segment.row
                part = _Forward(segment, query[row], key[row], value[row], scale, work)
                part.run(output[row], log_sum_exp[row])
        ctx.save_for_backward(query, key, value, output, log_sum_exp)
        ctx.layout, ctx.scale = layout, scale
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, log_sum_exp = ctx.saved_tensors
        grad_query = torch.empty_like(query) if ctx.layout.is_complete else torch.zeros_like(query)
        with ctx.layout.workspaces.lend(query) as work, torch.autocast(query.device.type, enabled=False):
            grad_key, grad_value = (torch.zeros_like(tensor, dtype=work.dtype) for tensor in (key, value))
            for segment in ctx.layout.segments:
                row = segment.row
                part = _Backward(segment, query[row], key[row], value[row], ctx.scale, work)
                part.run(
                    output[row], log_sum_exp[row], grad_output[row], grad_query[row], grad_key[row], grad_value[row]
                )
        grad_key.div_(LOG2_E)  # the queries were scaled for a softmax of base 2
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


class _Forward(Pass):
    def run(self, output: torch.Tensor, log_sum_exp: torch.Tensor) -> None:
        """Write a segment's rows of (H, Q, E) and (H, Q)."""
        for chunk in self.segment.chunks(self.heads):
            result, maximum = self._attend(chunk)
            if not float(result[..., -1].amax()) <= _OVERFLOW:  # NaN, too
                result, maximum = self._attend(chunk, far_above_near=True)
            total = result[..., -1:]
            self.store(result[..., :-1], total.reciprocal(), chunk, output)
            self.store(maximum.add_(total.log2()), 1.0, chunk, log_sum_exp[..., None])

    def _attend(self, chunk: QueryChunk, far_above_near: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute a chunk's sums of exponentials times values and 1, (Hkv, R, E + 1), and what was subtracted before.

        That is the near logits' maximum, (Hkv, R, 1), and no far logit is looked at; with `far_above_near` it is the
        maximum of all, which the exponentials need where far logits are very far above the near ones.
        """
        work, head_size, value_size = self.work, self.head_size, self.value_size
        query = self.load_queries(chunk)
        logits = self.near_logits(query, self.strips("near_key", self.key, chunk), chunk)
        maximum = logits.amax(-1, keepdim=True)
        logits.sub_(maximum).exp2_()
        result = work.get("result", self.kv_heads, query.shape[1], value_size + 1)
        torch.bmm(logits, self.strips("near_value", self.value, chunk), out=self.tiles(result, chunk))
        maximum = maximum.view(self.kv_heads, -1, 1)
        if not far_above_near:
            torch.neg(maximum, out=query[..., head_size : head_size + 1])

        for rows, far, biases in self.far_panels(chunk):
            logits = self.far_logits(query[:, rows], far, biases)
            if far_above_near:
                highest = torch.maximum(logits.amax(-1, keepdim=True), maximum[:, rows])
                logits.sub_(highest)
                result[:, rows].mul_((maximum[:, rows] - highest).exp2_())
                maximum[:, rows] = highest
            block = work.get("block_result", self.kv_heads, logits.shape[1], value_size + 1)
            torch.bmm(logits.exp2_(), self.far_value[:, far], out=block)
            result[:, rows].add_(block)
        return result, maximum


class _Backward(Pass):
    def run(
        self,
        output: torch.Tensor,
        log_sum_exp: torch.Tensor,
        grad_output: torch.Tensor,
        grad_query: torch.Tensor,
        grad_key: torch.Tensor,
        grad_value: torch.Tensor,
    ) -> None:
        """Add a segment's gradients to (H, Q, D), (Hkv, L, D) and (Hkv, L, E)."""
        segment, work, head_size, value_size = self.segment, self.work, self.head_size, self.value_size
        # transposed: the faster product
        far_grad_key = torch.zeros(self.kv_heads, head_size, self.far_number, dtype=work.dtype, device=work.device)
        far_grad_value = far_grad_key.new_zeros(self.kv_heads, value_size, self.far_number)
        for chunk in segment.chunks(self.heads):
            query = self.load_queries(chunk)
            rows_lse = segment.take_queries(log_sum_exp, chunk.start, chunk.stop)[..., None]
            self.load(rows_lse, query[..., head_size:], chunk, -1.0)

            grad_rows = segment.take_queries(grad_output, chunk.start, chunk.stop)
            grad = work.get("grad", self.kv_heads, query.shape[1], value_size + 1)
            self.load(grad_rows, grad, chunk)
            product = grad_rows.to(work.dtype) * segment.take_queries(output, chunk.start, chunk.stop)
            self.load(product.sum(-1, keepdim=True), grad[..., value_size:], chunk, -1.0)

            result = work.get("result", self.kv_heads, query.shape[1], head_size)
            self._near(chunk, query, grad, result, grad_key, grad_value)
            for rows, far, biases in self.far_panels(chunk):
                queries, grads = query[:, rows], grad[:, rows]
                probabilities = self.far_logits(queries, far, biases).exp2_()
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
            self.store(result, self.scale, chunk, grad_query)

        grad_key.index_add_(1, self.far_places, far_grad_key.transpose(1, 2))
        grad_value.index_add_(1, self.far_places, far_grad_value.transpose(1, 2))

    def _near(
        self,
        chunk: QueryChunk,
        query: torch.Tensor,
        grad: torch.Tensor,
        result: torch.Tensor,
        grad_key: torch.Tensor,
        grad_value: torch.Tensor,
    ) -> None:
        head_size, grads = self.head_size, self.tiles(grad, chunk)
        keys = self.strips("near_key", self.key, chunk)
        probabilities = self.near_logits(query, keys, chunk).exp2_()
        self._add_strips(torch.bmm(probabilities.transpose(1, 2), grads[..., :-1]), chunk, grad_value)
        values = self.strips("near_value", self.value, chunk)
        grad_logits = self.work.get("near_grad_logits", *probabilities.shape)
        torch.bmm(grads, values.transpose(1, 2), out=grad_logits)
        grad_logits.mul_(probabilities)
        torch.bmm(grad_logits, keys[..., :head_size], out=self.tiles(result, chunk))
        queries = self.tiles(query, chunk)[..., :head_size]
        self._add_strips(torch.bmm(grad_logits.transpose(1, 2), queries), chunk, grad_key)

    def _add_strips(self, strips: torch.Tensor, chunk: QueryChunk, target: torch.Tensor) -> None:
        """Add the overlapping strips (Hkv · tiles, strip columns, size) of a chunk to (Hkv, L, size)."""
        segment, size = self.segment, strips.shape[2]
        tile, window, length = segment.tile, segment.window, chunk.tiles * segment.tile
        strips = strips.view(self.kv_heads, chunk.tiles, segment.strip, size)
        joined = self.work.get("joined", self.kv_heads, segment.strip + length, size).zero_()
        for first in range(0, segment.strip, tile):
            columns = strips[:, :, first : first + tile]
            place = joined[:, first : first + length].view(self.kv_heads, chunk.tiles, tile, size)
            place[:, :, : columns.shape[2]].add_(columns)
        start = chunk.start - window
        stop = min(chunk.stop, segment.length)
        segment.add(target, joined[:, max(-start, 0) : stop - start], max(start, 0), stop)
