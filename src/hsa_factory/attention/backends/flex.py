"""Sparse HSA attention on CUDA: one fused kernel by `torch.nn.attention.flex_attention`.

Scattered memory tokens leave every causal block of keys alive, so the keys (and only they) are reordered in runs: those
seen for ever first, then those of each other reach. A block of queries then sees some consecutive key blocks of each run,
and which ones follows from the first and last place that sees each block: O((L/128)²) instead of evaluating N×N pairs.
Every other run is in descending order: where two runs share a block, both have keys of the same end of the row in it.

Everything that changes from batch to batch is captured as a tensor, so that one compiled kernel serves all of them.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.fx.experimental._config as shapes
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ..by_type import by_type
from ..layer_rules import LayerRules
from ..places import find_places
from ..plan import AttentionPlan


BLOCK = 128  # rows and columns of a block of the mask
_NOWHERE = 2**30  # place of a key that no query may see


def flex_hsa_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    rules: LayerRules,
    scale: float | None = None,
    compiled: bool = True,
) -> torch.Tensor:
    """Compute HSA attention with a compiled flex kernel.

    Legend: B batch, H query heads, Hkv key/value heads, Q query length, L key length, D head size, E value head size.

    Args:
        query: (B, H, Q, D), float32, bfloat16 or float16; logits, bias and softmax are float32.
        key: (B, Hkv, L, D).
        value: (B, Hkv, L, E).
        plan: Built for these lengths.
        rules: Of the layer.
        scale: Factor of q·k; None: 1/√D.
        compiled: False runs the same functions without a kernel, in O(Q·L) memory and forward only on CPU: for tests.

    Returns:
        (B, H, Q, E) in the dtype of `query`, zeros at padding.

    Raises:
        RuntimeError: If torch cannot compile the kernel (any more), instead of running it uncompiled.
    """
    query, key, value = plan.zero_padding(query, key, value)
    mask = plan.once(FlexMask, rules)
    if mask.row_order is not None and mask.row_inverse is not None:
        key, value = (_reorder(tensor, mask.row_order, mask.row_inverse) for tensor in (key, value))

    scale = query.shape[-1] ** -0.5 if scale is None else scale
    arguments = (query, key, value, mask.block_mask, mask.slope, mask.query_place, mask.key_place, scale)
    if not compiled:
        return _attend(*arguments)
    before = shapes.use_duck_shape
    shapes.use_duck_shape = False  # else numbers equal by chance, as of heads and blocks, would have to stay so
    try:
        return _compiled_attend(query.device.type)(*arguments)
    except torch._dynamo.exc.FailOnRecompileLimitHit as error:
        raise RuntimeError(
            "The flex backend would have to be compiled once more than torch allows, and uncompiled it would build "
            "N×N logits. Raise torch._dynamo.config.recompile_limit, or take another backend (`hsa: {backend: "
            "blockwise}`)."
        ) from error
    finally:
        shapes.use_duck_shape = before


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block_mask: BlockMask,
    slope: torch.Tensor,
    query_place: torch.Tensor,
    key_place: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    def score_mod(
        score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> torch.Tensor:
        return score - slope[b, k] * (query_place[b, q] - key_place[b, k])

    grouped = query.shape[1] != key.shape[1]
    output: torch.Tensor = flex_attention(  # type: ignore[assignment]  # more only where more is asked for
        query,
        key,
        value,
        score_mod=score_mod,
        block_mask=block_mask,
        scale=scale,
        enable_gqa=grouped,
        kernel_options=_kernel_options(query),  # type: ignore[arg-type]  # its type lacks the keys of one pass
    )
    return output


def _kernel_options(query: torch.Tensor) -> dict[str, int] | None:
    """Return how the kernel is cut up where torch's own choice would not fit; None: as torch does it.

    For half precision and heads of 64, torch takes tiles of 128 × 128 in four warps on Hopper and Blackwell: with the slopes and
    places of this score function a thread needs more than the 255 registers there are (sm_90, ptxas 12.8: 1,068 bytes are
    stored to memory and its matrix products wait for each other), on Ampere a little more. What is taken here needs 232 on
    sm_90, and nothing goes to memory on either. In the backward, loading two steps ahead instead of three takes about a
    tenth off forward and backward on an H200.
    """
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    if query.device.type != "cuda" or torch.version.hip is not None or not is_half or query.shape[-1] != 64:
        return None
    if query.shape[2] < BLOCK:  # another kernel, for decoding
        return None
    return {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64, "fwd_num_warps": 8, "bwd_num_stages": 2}


@cache
def _compiled_attend(device_type: str) -> Callable[..., torch.Tensor]:
    # fullgraph: torch raises at its recompile limit instead of running N×N attention uncompiled
    # dynamic: all lengths share a kernel; torch's code for CPU does not compile that way (used by benchmarks only)
    return torch.compile(_attend, fullgraph=True, dynamic=device_type != "cpu")


class _Reorder(torch.autograd.Function):
    """Reorder keys or values; the gradient is reordered back, without the atomics of a scatter."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse)
        return _take(tensor, order)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return _take(grad, inverse), None, None


def _reorder(tensor: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    reordered: torch.Tensor = _Reorder.apply(tensor, order, inverse)  # type: ignore[no-untyped-call]
    return reordered


def _take(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Take the keys at (B·L,) places of the rows laid end to end. (B, Hkv, L, D) → the same shape.

    All heads of a key are copied as one piece of memory, which is how a model's projections lay them: `take_along_dim` would
    write an index for each number.
    """
    batch_size, heads, length, size = tensor.shape
    keys = tensor.transpose(1, 2).reshape(batch_size * length, heads * size)
    taken = keys.gather(0, rows[:, None].expand(-1, heads * size))
    return taken.view(batch_size, length, heads, size).transpose(1, 2)


class FlexMask:
    """A plan in the form that flex attention takes: made by ``plan.once(FlexMask, rules)``.

    A token's *place* is its position in its document, or, in a packed row, its number in the row sorted by documents. So a
    key is seen by the queries of one interval of places, and a kernel reads four numbers instead of documents, types,
    windows and turns.

    Args:
        plan: The plan.
        rules: The rules of the layer.

    Attributes:
        order: (B, L) int64, the key that stands at each place of the reordered keys. None: they stay in order.
        inverse: (B, L) int64, where each key has gone. None: nowhere.
        row_order: (B·L,) int64, `order` among the rows laid end to end; `row_inverse` likewise.
        query_place: (B, Q) int32; −1 at padding.
        key_place: (B, L) int32, reordered: also the first place that sees the key.
        slope: (B, L) float32, decay of each reordered key.
        block_mask: Which blocks of 128 queries and 128 reordered keys are computed, and which need no mask.
    """

    def __init__(self, plan: AttentionPlan, rules: LayerRules) -> None:
        types, padding = plan.semantic_ids, plan.is_padding
        rows = slice(plan.key_length - plan.query_length, None)
        place, last_seen = find_places(plan)[0], plan.last_seen(rules)
        if plan.has_packed_rows():
            last_seen = place - plan.positions + last_seen
        self.order, self.inverse = _order(plan, rules, place)
        self.row_order, self.row_inverse = _end_to_end(self.order), _end_to_end(self.inverse)
        query_place = place[:, rows]
        if padding is not None:
            query_place = query_place.masked_fill(padding[:, rows], -1)
            place, last_seen = place.masked_fill(padding, _NOWHERE), last_seen.masked_fill(padding, -1)
        self.query_place = query_place.to(torch.int32, memory_format=torch.contiguous_format)
        self.key_place, last_seen = (self._reorder(numbers).int() for numbers in (place, last_seen))
        self.slope = self._reorder(by_type(types, rules.decays, torch.float32))
        mask_mod = _mask_mod(self.query_place, self.key_place, last_seen)
        if rules.hide:
            pairs = _hidden_pairs(rules, plan.device)
            mask_mod = _hiding(mask_mod, self.query_place, self.key_place, types[:, rows], self._reorder(types), pairs)
        self.block_mask = self._block_mask(plan, last_seen, mask_mod, may_be_full=not rules.hide)

    def _reorder(self, values: torch.Tensor) -> torch.Tensor:
        return values if self.order is None else values.gather(1, self.order)

    def _block_mask(
        self, plan: AttentionPlan, last_seen: torch.Tensor, mask_mod: Callable[..., torch.Tensor], may_be_full: bool
    ) -> BlockMask:
        """Find the blocks that hold a visible pair, and those that hold only such."""
        earliest, latest = (ends[:, None] for ends in _by_block(self.key_place, fill=_NOWHERE).aminmax(dim=2))
        soonest_end, last_end = (ends[:, None] for ends in _by_block(last_seen, fill=-1).aminmax(dim=2))
        # rows past the end join any block, padded ones only those that have a mask
        queries = _by_block(self.query_place, fill=_NOWHERE)
        lowest = lowest_real = queries.amin(2)[:, :, None]
        if plan.is_padding is not None:
            lowest_real = queries.masked_fill(queries < 0, _NOWHERE).amin(2)[:, :, None]
        highest = _by_block(self.query_place, fill=-1).amax(2)[:, :, None]

        visible = (earliest <= highest) & (last_end >= lowest_real)
        full = (latest <= lowest) & (soonest_end >= highest)
        full = full & visible if may_be_full else torch.zeros_like(visible)
        blocks = torch.stack([visible & ~full, full])
        return BlockMask(
            (plan.query_length, plan.key_length),
            *_listed(blocks),
            *_listed(blocks.transpose(2, 3)),  # for the gradients of keys and values
            BLOCK_SIZE=(BLOCK, BLOCK),
            mask_mod=mask_mod,
        )


def _mask_mod(
    query_place: torch.Tensor, first_seen: torch.Tensor, last_seen: torch.Tensor
) -> Callable[..., torch.Tensor]:
    def mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (query_place[b, q] >= first_seen[b, k]) & (query_place[b, q] <= last_seen[b, k])

    return mask_mod


def _hiding(
    mask_mod: Callable[..., torch.Tensor],
    query_place: torch.Tensor,
    key_place: torch.Tensor,
    query_type: torch.Tensor,
    key_type: torch.Tensor,
    hidden_pairs: torch.Tensor,
) -> Callable[..., torch.Tensor]:
    def hiding_mask_mod(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        itself = query_place[b, q] == key_place[b, k]
        return mask_mod(b, h, q, k) & (itself | ~hidden_pairs[query_type[b, q], key_type[b, k]])

    return hiding_mask_mod


def _hidden_pairs(rules: LayerRules, device: torch.device) -> torch.Tensor:
    hidden = torch.zeros(3, 3, dtype=torch.bool, device=device)
    for query_type, key_type in rules.hide:
        hidden[query_type, key_type].fill_(True)  # an assignment of a Python number, or a copy, would wait for a GPU
    return hidden


def _order(
    plan: AttentionPlan, rules: LayerRules, place: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the key at each place of the reordered keys, and where each key goes, (B, L); None: they stay."""
    near, bands = rules.bands(longest=_NOWHERE)
    runs = [*bands, near] if near else bands
    if len(runs) < 2:
        return None, None

    run_of_type = [next(number for number, run in enumerate(runs) if kind in run) for kind in range(3)]
    run = by_type(plan.semantic_ids, run_of_type, torch.int64)
    within = torch.where(run % 2 == 0, place, _NOWHERE - 1 - place)
    rank = within.add_(run, alpha=_NOWHERE)
    if plan.is_padding is not None:
        rank.masked_fill_(plan.is_padding, len(runs) * _NOWHERE)
    order = torch.argsort(rank, dim=1, stable=True)
    numbers = torch.arange(plan.key_length, device=plan.device).expand_as(order)
    return order, torch.empty_like(order).scatter_(1, order, numbers)


def _end_to_end(places: torch.Tensor | None) -> torch.Tensor | None:
    """Turn (B, L) places within rows into (B·L,) places in all rows laid end to end."""
    if places is None or places.shape[0] == 1:
        return None if places is None else places[0]
    starts = torch.arange(places.shape[0], device=places.device)[:, None] * places.shape[1]
    return (places + starts).flatten()


def _by_block(values: torch.Tensor, fill: int) -> torch.Tensor:
    """Cut (B, L) into (B, blocks, 128)."""
    missing = -values.shape[1] % BLOCK
    values = torch.nn.functional.pad(values, (0, missing), value=fill) if missing else values
    return values.view(values.shape[0], -1, BLOCK)


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn (2, B, rows, columns) bool into a BlockMask's numbers and indices of the one kind of blocks, then of the other."""
    columns = blocks.shape[3]
    number = blocks.cumsum(3)
    places = (number - 1).masked_fill_(~blocks, columns)  # those not listed go to a last column that is cut off
    index = torch.zeros(*blocks.shape[:3], columns + 1, dtype=torch.int32, device=blocks.device)
    index.scatter_(3, places, torch.arange(columns, dtype=torch.int32, device=blocks.device).expand_as(blocks))
    numbers, indices = number[:, :, None, :, -1], index[:, :, None, :, :columns]
    # tensors of their own, not views: a compiled kernel copies inputs that do not begin at a multiple of 16 bytes
    own = torch.contiguous_format
    return (
        numbers[0].int(),
        indices[0].clone(memory_format=own),
        numbers[1].int(),
        indices[1].clone(memory_format=own),
    )
