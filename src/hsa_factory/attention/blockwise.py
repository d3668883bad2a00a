"""Sparse HSA attention in portable torch, forward and backward: exact, O(visible keys) time, O(L) memory.

A query sees few keys of two kinds. *Far* keys have no window (or a wide one): GLOBAL and LANDMARK. They are gathered
once, in order, so that those before a block of queries are one contiguous prefix. *Near* keys have a narrow window:
NOISE. For a block of queries they lie in one strip of the original keys. Both are put side by side and go through one
matrix product and one softmax, so nothing has to be merged, and the backward pass computes the probabilities anew from
q and k instead of keeping them (as in FlashAttention, arXiv 2205.14135).

The bias of far keys, −decay·(i − j), has rank two and rides along as two more head dimensions (as in FlashBias,
arXiv 2505.12044), with positions counted from the block so that float32 is exact enough. The strip is small and gets
its bias added.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .documents import MAX_ROWS, Block, Document, DocumentLayout
from .plan import AttentionPlan


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
    layout = plan.document_layout(sliding_window, neutral)
    return _run(query, key, value, layout, scale)


@torch.compiler.disable
def _run(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: DocumentLayout, scale: float
) -> torch.Tensor:
    return _BlockwiseAttention.apply(query, key, value, layout, scale)


class _BlockwiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: DocumentLayout, scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.layout, ctx.scale = layout, scale
        output = query.new_zeros(*query.shape[:-1], value.shape[-1])
        with torch.autocast(query.device.type, enabled=False):
            work = _Workspace(query)
            for document in layout.documents:
                part = _Part(document, query, key, value, layout.query_offset, scale, work)
                result = part.empty_like_queries(value.shape[-1])
                for block, probabilities in part.blocks():
                    rows = torch.bmm(probabilities, part.values(block))
                    place = result.narrow(1, block.query_rows.start, block.rows)
                    place.copy_(rows.view(query.shape[1], block.rows, -1))
                part.store(output, result)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        grads = [torch.zeros_like(tensor) for tensor in (query, key, value)]
        with torch.autocast(query.device.type, enabled=False):
            work = _Workspace(query)
            for document in ctx.layout.documents:
                part = _Part(document, query, key, value, ctx.layout.query_offset, ctx.scale, work)
                part.backward(grad_output, *grads)
        return (*grads, None, None)


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


@dataclass
class _Part:
    """One document of one row, with its far keys and values gathered."""

    document: Document
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    query_offset: int
    scale: float
    work: _Workspace

    def __post_init__(self) -> None:
        document, work = self.document, self.work
        self.heads, self.head_size = self.query.shape[1], self.query.shape[3]
        self.kv_heads, self.value_size = self.key.shape[1], self.value.shape[3]
        self.groups = self.heads // self.kv_heads
        self.q = document.take_queries(self.query[document.row], self.query_offset)
        self.k = document.take(self.key[document.row])
        self.v = document.take(self.value[document.row])

        # Column buffers: [strip of near keys | far keys]; the strip is overwritten block by block.
        self.bias_size = 2 if document.far_has_decay else 0
        size, columns = self.head_size + self.bias_size, document.strip + document.far_index.numel()
        self.key_columns = work.get("keys", self.kv_heads, columns, size)
        self.value_columns = work.get("values", self.kv_heads, columns, self.value_size)
        self.query_rows = work.get("queries", self.heads * MAX_ROWS * size)
        self.query_views: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        far = slice(document.strip, columns)
        self.key_columns[:, far, : self.head_size] = self.k.index_select(1, document.far_index)
        self.value_columns[:, far] = self.v.index_select(1, document.far_index)
        if self.bias_size:
            self.far_decay = document.far_decay.to(work.dtype)
            self.far_position = document.far_index.to(work.dtype)
            self.key_columns[:, : document.strip, self.head_size :] = 0
            self.key_columns[:, far, self.head_size] = -self.far_decay
            self.row_numbers = torch.arange(MAX_ROWS, dtype=work.dtype, device=work.device)

    def blocks(self) -> Iterator[tuple[Block, torch.Tensor]]:
        """Yield each block of queries and its probabilities (Hkv, G·rows, columns)."""
        for block in self.document.blocks(self.groups * self.kv_heads):
            yield block, self.probabilities(block)

    def probabilities(self, block: Block) -> torch.Tensor:
        """Compute the softmax of a block's biased logits over its columns."""
        self.keys = keys = self._columns(self.key_columns, self.k, block)
        near, far = block.near_columns, block.columns - block.near_columns
        if self.bias_size and far:
            relative = self.far_position.narrow(0, block.far_start, far) - block.start
            relative.mul_(self.far_decay.narrow(0, block.far_start, far))
            keys.select(2, self.head_size + 1).narrow(1, near, far).copy_(relative)

        logits = self.work.get("logits", self.kv_heads, self.groups * block.rows, block.columns)
        torch.bmm(self.queries(block), keys.transpose(1, 2), out=logits)
        by_head = logits.view(self.heads, block.rows, block.columns)
        if block.near_bias is not None:
            by_head.narrow(2, 0, near).add_(block.near_bias)
        if block.far_bias is not None:
            number = block.far_bias.shape[1]
            by_head.narrow(2, block.columns - number, number).add_(block.far_bias)

        probabilities = self.work.get("probabilities", *logits.shape)
        return torch.ops.aten._softmax.out(logits, -1, False, out=probabilities)

    def queries(self, block: Block) -> torch.Tensor:
        """Return a block's scaled queries (Hkv, G·rows, D + bias dimensions)."""
        rows, size = block.rows, self.head_size + self.bias_size
        if rows not in self.query_views:  # the bias dimensions are the same in every block: written once
            whole = self.query_rows[: self.heads * rows * size].view(self.heads, rows, size)
            self.query_views = {rows: (whole[..., : self.head_size], whole.view(self.kv_heads, -1, size))}
            if self.bias_size:
                whole[..., self.head_size] = self.row_numbers[:rows]
                whole[..., self.head_size + 1] = 1
        heads, queries = self.query_views[rows]
        torch.mul(self.q.narrow(1, block.query_rows.start, rows), self.scale, out=heads)
        return queries

    def values(self, block: Block) -> torch.Tensor:
        """Return a block's values (Hkv, columns, E)."""
        return self._columns(self.value_columns, self.v, block)

    def _columns(self, columns: torch.Tensor, source: torch.Tensor, block: Block) -> torch.Tensor:
        """Put a block's strip in front of its far columns."""
        strip, near, far = self.document.strip, block.near_columns, block.far_stop - block.far_start
        if block.far_start == 0:  # the usual case: the strip's place is right before the first far key
            view = columns.narrow(1, strip - near, near + far)
        else:
            view = torch.cat([columns.narrow(1, 0, near), columns.narrow(1, strip + block.far_start, far)], dim=1)
        if near:
            place = view.narrow(1, 0, near).narrow(2, 0, source.shape[-1])
            place.copy_(source.narrow(1, block.near_rows.start, near))
        return view

    def backward(
        self, grad_output: torch.Tensor, grad_query: torch.Tensor, grad_key: torch.Tensor, grad_value: torch.Tensor
    ) -> None:
        """Add this document's gradients."""
        document, work = self.document, self.work
        grad_out = document.take_queries(grad_output[document.row], self.query_offset)
        grad_q = self.empty_like_queries(self.head_size)
        grad_k = torch.zeros_like(self.k, dtype=work.dtype)
        grad_v = torch.zeros_like(self.v, dtype=work.dtype)
        far_shape = (self.kv_heads, self.head_size, document.far_index.numel())  # transposed: the faster product
        far_k = torch.zeros(far_shape, dtype=work.dtype, device=work.device)
        far_v = far_k.new_zeros(self.kv_heads, self.value_size, far_shape[2])
        for block, probabilities in self.blocks():
            rows = work.get("grad_rows", self.heads, block.rows, self.value_size)
            rows.copy_(grad_out.narrow(1, block.query_rows.start, block.rows))
            rows = rows.view(self.kv_heads, self.groups * block.rows, self.value_size)
            columns_v = work.get("grad_values", self.kv_heads, self.value_size, block.columns)
            torch.bmm(rows.transpose(1, 2), probabilities, out=columns_v)
            grad_p = work.get("grad_probabilities", *probabilities.shape)
            torch.bmm(rows, self.values(block).transpose(1, 2), out=grad_p)
            grad_s = work.get("logits", *probabilities.shape)  # the logits are not needed any more
            torch.ops.aten._softmax_backward_data.out(grad_p, probabilities, -1, work.dtype, grad_input=grad_s)

            queries = self.query_views[block.rows][1].narrow(2, 0, self.head_size)
            block_q = work.get("grad_queries", self.kv_heads, self.groups * block.rows, self.head_size)
            torch.bmm(grad_s, self.keys.narrow(2, 0, self.head_size), out=block_q)
            place = grad_q.narrow(1, block.query_rows.start, block.rows)
            torch.mul(block_q.view(self.heads, block.rows, -1), self.scale, out=place)
            columns_k = work.get("grad_keys", self.kv_heads, self.head_size, block.columns)
            torch.bmm(queries.transpose(1, 2), grad_s, out=columns_k)

            near, far = block.near_columns, block.columns - block.near_columns
            for columns, grad, far_grad in ((columns_k, grad_k, far_k), (columns_v, grad_v, far_v)):
                if near:
                    strip = grad.narrow(1, block.near_rows.start, near)
                    strip.add_(columns.narrow(2, 0, near).transpose(1, 2))
                if far:
                    far_grad.narrow(2, block.far_start, far).add_(columns.narrow(2, near, far))

        grad_k.index_add_(1, document.far_index, far_k.transpose(1, 2))
        grad_v.index_add_(1, document.far_index, far_v.transpose(1, 2))
        document.put_queries(grad_query[document.row], grad_q, self.query_offset)
        document.add(grad_key[document.row], grad_k)
        document.add(grad_value[document.row], grad_v)

    def empty_like_queries(self, size: int) -> torch.Tensor:
        """Return a result for this document's queries (H, queries, size)."""
        return torch.empty(self.heads, self.q.shape[1], size, dtype=self.work.dtype, device=self.work.device)

    def store(self, output: torch.Tensor, result: torch.Tensor) -> None:
        """Write a result to its places."""
        self.document.put_queries(output[self.document.row], result, self.query_offset)
