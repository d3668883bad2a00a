"""A small timing of each backend against causal attention without HSA, and what share of the limit it reaches."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..attention import AttentionPlan, LayerRules
from ..config import HSAConfig
from ..inspection.attention_time import time_attention, typical_tokens
from ..inspection.sample_cost import layer_cost
from .scrub import scrub


LENGTHS = (4096, 16384)
_CAUSAL = "dense"  # without rules it is scaled_dot_product_attention(is_causal=True)
_SQUARES = {"dense": 1.0, "reference": 10.0}  # N×N tensors that a backend holds at a time, one a head in `reference`
_SIZES = {"cpu": (1, 1, 64), "cuda": (16, 8, 128)}  # query heads, heads of keys, head size
_LARGEST = {"cpu": 2 * 2**30, "cuda": 8 * 2**30}  # bytes of those


@dataclass(frozen=True)
class Timing:
    """Forward and backward of one layer, batch 1.

    Attributes:
        backend: Its name.
        tokens: Of the row.
        seconds: None: not measured.
        causal_seconds: Of causal attention without HSA; None: not measured.
        speed_up: Of the two; None: not measured.
        limit: Causal pairs over visible pairs: what skipping every invisible pair would bring.
        note: Why it was not measured; empty: it was.
    """

    backend: str
    tokens: int
    seconds: float | None
    causal_seconds: float | None
    speed_up: float | None
    limit: float
    note: str = ""

    @property
    def share_of_limit(self) -> float | None:
        """Speed-up over limit; None: not measured."""
        return None if self.speed_up is None else self.speed_up / self.limit


def run_timing(
    device: torch.device,
    dtype: torch.dtype,
    backends: Sequence[str],
    advance: Callable[[str], None],
    lengths: Sequence[int] = LENGTHS,
    limit_s: float = 40.0,
) -> list[Timing]:
    """Time backends on an agent's trajectory by the default rules.

    A length is left out if, by the time that the former one took, it would take longer than there is.

    Args:
        device: Where.
        dtype: Of q, k and v.
        backends: Names.
        advance: Called before each measurement with what it is; once a length more for causal attention.
        lengths: Tokens of a row, growing.
        limit_s: Seconds for all; what has begun is ended.
    """
    end, former = time.monotonic() + limit_s, (0, 0.0)
    heads, key_heads, head_size = _SIZES[device.type]
    rules, timings = LayerRules.of(HSAConfig()), []
    for length in lengths:
        tokens = typical_tokens(length)
        limit = length * (length + 1) / 2 / layer_cost(tokens, rules).pairs
        leaves = [
            torch.randn(1, number, length, head_size, device=device, dtype=dtype, requires_grad=True)
            for number in (heads, key_heads, key_heads)
        ]
        advance(f"causal, {length:,} tokens")
        start, left = time.monotonic(), end - time.monotonic()
        expected = former[1] * (length / former[0]) ** 2 if former[0] else 0.0
        late = f"no time left: causal attention alone would take {expected:.0f} s" if expected > left else ""
        causal, note = (None, late) if late else _measure(leaves, tokens.plan(), LayerRules.plain(), _CAUSAL)
        former = (length, time.monotonic() - start)
        for backend in backends:
            advance(f"{backend}, {length:,} tokens")
            size = _size_of_squares(backend, length, heads, leaves[0].element_size())
            seconds, why = None, note
            if size > _LARGEST[device.type]:
                why = f"it would hold {size / 2**30:.0f} GiB"
            elif causal is not None and time.monotonic() > end:
                why = "no time left"
            elif causal is not None:
                seconds, why = _measure(leaves, tokens.plan(), rules, backend)
            speed_up = None if seconds is None or causal is None else causal / seconds
            timings.append(Timing(backend, length, seconds, causal, speed_up, limit, why))
    return timings


def count_timings(backends: Sequence[str], lengths: Sequence[int]) -> int:
    """How often `run_timing` calls `advance`."""
    return len(lengths) * (len(backends) + 1)


def _size_of_squares(backend: str, length: int, heads: int, element_size: int) -> float:
    """Return the bytes of a backend's N×N tensors."""
    if backend == "reference":
        return _SQUARES[backend] * heads * length**2 * 4
    return _SQUARES.get(backend, 0.0) * length**2 * element_size


def _measure(
    leaves: list[torch.Tensor], plan: AttentionPlan, rules: LayerRules, backend: str
) -> tuple[float | None, str]:
    """Return the seconds, or why there are none."""
    query, key, value = leaves
    try:
        return time_attention(query, key, value, plan, rules, backend), ""
    except Exception as failure:  # out of memory, or a kernel that does not compile: the self-test says more
        return None, scrub(failure)
