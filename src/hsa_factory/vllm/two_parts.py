"""Many queries of a request: what each of them sees and what does not fade in one product, without a bias; the rest in strips.

The softmax over both is put together by the logarithms of their sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..attention import AttentionPlan
from ..attention.layer_rules import LayerRules
from .kept_memory import copied


@dataclass
class Strips:
    """Equally many queries each, one strip after the other, with the keys that are hidden from some of them or fade.

    Legend: N strips, Q queries of each, W keys of each, Hkv key/value heads.

    Attributes:
        start: Of the first query among those of the two parts.
        places: (N, Hkv, W) int64, where the keys stand in the cache, as rows of `key_rows`.
        plan: What queries and keys are.
    """

    start: int
    places: Tensor
    plan: AttentionPlan
    _bias: dict[tuple[LayerRules, torch.dtype, int], Tensor] = field(default_factory=dict)

    @property
    def queries(self) -> slice:
        """Of all strips, among those of the two parts."""
        return slice(self.start, self.start + self.plan.batch_size * self.plan.query_length)

    def bias(self, rules: LayerRules, dtype: torch.dtype, shared: int) -> Tensor:
        """Return (N, 1, Q·shared, W), each query's row as often as heads share a key; made once for all layers alike."""
        key = (rules, dtype, shared)
        if key not in self._bias:
            bias = self.plan.dense_bias(torch.float32, rules).to(dtype)
            self._bias[key] = bias.repeat_interleave(shared, dim=2)
        return self._bias[key]


@dataclass
class TwoParts:
    """Where the keys of both parts lie.

    Attributes:
        free: (1, Hkv, F) int64, keys that each query sees and of which none fades, as rows of `key_rows`.
        strips: Together, all queries.
    """

    free: Tensor
    strips: Sequence[Strips]

    def attend(self, query: Tensor, rows: Tensor, rules: LayerRules, scale: float, output: Tensor) -> None:
        """Write what the queries see.

        Args:
            query: (Q, H, D).
            rows: (tokens·Hkv, 2·D), `key_rows` of a layer.
            rules: Of the layer.
            scale: Factor of q·k.
            output: (Q, H, D), written to.
        """
        shared = query.shape[1] // self.free.shape[1]
        seen, sums = _attend(query, rows, self.free, None, scale)
        for strips in self.strips:
            part = strips.queries
            bias = strips.bias(rules, query.dtype, shared)
            near, near_sums = _attend(query[part], rows, strips.places, bias, scale)
            share = torch.sigmoid(near_sums - sums[part]).to(query.dtype)
            torch.lerp(seen[part], near, share.unsqueeze(-1), out=output[part])


def _attend(query: Tensor, rows: Tensor, places: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Let N equal parts of the queries attend to keys of their own.

    PyTorch's public function does not tell the softmax's sums.

    Args:
        query: (N·Q, H, D).
        rows: As in `TwoParts.attend`.
        places: (N, Hkv, K).
        bias: (N, 1, Q·H/Hkv, K).
        scale: Factor of q·k.

    Returns:
        (N·Q, H, D), and the logarithms of the sums, (N·Q, H) float32.
    """
    (number, heads, _), size = places.shape, query.shape[-1]
    held = copied(rows, places).view(*places.shape, 2 * size)
    asked = query.reshape(number, -1, heads, query.shape[1] // heads, size)
    split = (number, heads, *asked.shape[1:4:2])  # heads that share a key are rows of one product
    asked = asked.transpose(1, 2).reshape(number, heads, -1, size)
    found, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        asked, held[..., :size], held[..., size:], 0.0, False, attn_mask=bias, scale=scale
    )
    return (
        found.reshape(*split, size).transpose(1, 2).reshape(query.shape),
        sums.reshape(split).transpose(1, 2).reshape(query.shape[:2]),
    )
