"""Attention, forward and backward: HSA's backends against causal flash attention without HSA."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from layouts import SHARE_WITH_TURNS, Case, visible_pairs
from torch.nn.attention import SDPBackend, sdpa_kernel

from hsa_factory.attention import AttentionPlan, LayerRules, run_attention
from hsa_factory.attention.backends.blockwise.layout import Layout
from hsa_factory.attention.backends.flex import BLOCK, FlexMask

from .clock import peak_mib, seconds
from .rows import Row, Rows


KEYS = ("tokens", "head_size", "layout", "memory_share", "noise_turns", "method")
COLUMNS = (
    "heads",
    "kv_heads",
    "forward_ms",
    "ms",
    "forward_speed_up",
    "speed_up",
    "limit",
    "block_limit",
    "plan_ms",
    "mask_ms",
    "first_call_s",
    "peak_mib",
)
CASES = (
    *(Case(share, "scattered") for share in (0.05, 0.1, 0.2)),
    *(Case(SHARE_WITH_TURNS, "turns", turns) for turns in (0, 1, 4)),
)
BASELINE, TORCHS_CHOICE = "causal, flash", "causal, torch's choice"
KERNELS = ("triton", "flex")  # on a GPU, the first of them what `auto` takes


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        heads: (query heads, heads of keys, head size).
        methods: HSA's backends and the lengths of rows, in the order of measuring.
        rounds: Runs of each, of which the median counts.
        dtype: Of q, k and v.
    """

    heads: tuple[tuple[int, int, int], ...] = ((32, 8, 128), (32, 8, 64))
    methods: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("triton", (32768, 4096, 8192, 16384, 2048)),
        ("flex", (32768, 8192)),
        ("triton", (65536, 131072)),
        ("blockwise", (32768,)),
    )
    rounds: int = 5
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def smoke(cls) -> "Sizes":
        """Return what a CPU does in a second."""
        return cls(((4, 2, 16),), (("blockwise", (128, 256)),), 1, torch.float32)


def run(rows: Rows, device: torch.device, sizes: Sizes) -> None:
    """Measure all, one method after the other."""
    for method, lengths in sizes.methods:
        for length in lengths:
            for heads in sizes.heads:
                _Group(rows, device, sizes, length, heads).run(method)


class _Group:
    """All that is measured at one length and head size, on the same q, k and v."""

    def __init__(
        self, rows: Rows, device: torch.device, sizes: Sizes, length: int, heads: tuple[int, int, int]
    ) -> None:
        self.rows, self.device, self.sizes, self.length = rows, device, sizes, length
        self.heads, self.key_heads, self.head_size = heads
        self._inputs: list[torch.Tensor] = []

    def run(self, method: str) -> None:
        baselines = [BASELINE, TORCHS_CHOICE] if self.device.type == "cuda" else [BASELINE]
        for baseline in baselines:
            self._measure(baseline, None)
        for case in CASES:
            self._measure(method, case)
        self._inputs = []

    def _measure(self, method: str, case: Case | None) -> Row:
        what = {
            "layout": case and case.layout,
            "memory_share": case and case.share,
            "noise_turns": case and case.noise_turns,
            "method": method,
        }
        call: Callable[[], dict] = lambda: self._causal(method) if case is None else self._hsa(method, case)
        return self.rows.measure(call, self._expected(what), tokens=self.length, head_size=self.head_size, **what)

    def _expected(self, what: dict) -> float:
        """Return the seconds that a case takes: from the same one at half the length."""
        former = self.rows.find(tokens=self.length // 2, head_size=self.head_size, **what)
        runs = 2 * self.sizes.rounds + 3
        return 0.0 if former is None else 4 * runs * float(former["ms"]) / 1000

    def _draw(self) -> list[torch.Tensor]:
        """Return query, key, value and a gradient of the output, made at the first call."""
        if not self._inputs:
            torch.manual_seed(0)
            counts = (self.heads, self.key_heads, self.key_heads, self.heads)
            shapes = [(1, count, self.length, self.head_size) for count in counts]
            tensors = [torch.randn(shape, device=self.device, dtype=self.sizes.dtype) for shape in shapes]
            self._inputs = [*(tensor.requires_grad_() for tensor in tensors[:3]), tensors[3]]
        return self._inputs

    def _causal(self, method: str) -> dict:
        query, key, value, _ = self._draw()
        with _flash() if method == BASELINE and self.device.type == "cuda" else contextlib.nullcontext():
            times = self._times(
                lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            )
        return times

    def _hsa(self, method: str, case: Case) -> dict:
        query, key, value, _ = self._draw()
        rules = LayerRules.of(case.config())
        plan = case.plan(self.length, self.device)
        times = self._times(lambda: run_attention(query, key, value, plan, rules, method)[0])
        make = self._maker(method)
        fresh = lambda: _copy(plan).once(make, rules)
        whole = lambda: _again(plan).once(make, rules)
        fresh(), whole()
        mask_seconds = seconds(fresh, self.device, self.sizes.rounds)
        plan_seconds = seconds(whole, self.device, self.sizes.rounds)
        values = times | {
            "plan_ms": round(1e3 * plan_seconds, 4),
            "mask_ms": round(1e3 * mask_seconds, 4),
            "limit": round(self.length * (self.length + 1) / 2 / visible_pairs(plan, rules), 3),
            "block_limit": round(_block_limit(plan, rules), 3),
        }
        causal = self.rows.find(tokens=self.length, head_size=self.head_size, method=BASELINE)
        if causal is not None:
            values["forward_speed_up"] = round(float(causal["forward_ms"]) / times["forward_ms"], 3)
            values["speed_up"] = round(float(causal["ms"]) / times["ms"], 3)
        return values

    def _maker(self, method: str) -> Callable:
        """Return what makes of a plan what the method needs."""
        if method != "triton":
            return {"flex": FlexMask, "blockwise": Layout}[method]
        from hsa_factory.attention.backends.triton.attention import layout_maker

        query, key, value, _ = self._draw()
        return layout_maker(query, key, value)

    def _times(self, attend: Callable[[], torch.Tensor]) -> dict:
        *leaves, upstream = self._draw()

        def forward() -> None:
            with torch.no_grad():
                attend()

        def both() -> None:
            torch.autograd.grad(attend(), leaves, upstream)

        first = seconds(lambda: (forward(), both()), self.device, 1)
        peak = peak_mib(both, self.device)
        return {
            "heads": self.heads,
            "kv_heads": self.key_heads,
            "first_call_s": round(first, 3),
            "forward_ms": round(1e3 * seconds(forward, self.device, self.sizes.rounds), 4),
            "ms": round(1e3 * seconds(both, self.device, self.sizes.rounds), 4),
            "peak_mib": peak,
        }


def _again(plan: AttentionPlan) -> AttentionPlan:
    """Make the same plan anew, as a training step does: its input checked."""
    return AttentionPlan.from_inputs(plan.semantic_ids, turn_ids=plan.turn_ids)


def _copy(plan: AttentionPlan) -> AttentionPlan:
    """Return the same plan without what was made for it."""
    return AttentionPlan(
        plan.semantic_ids,
        plan.document_ids,
        plan.positions,
        plan.query_length,
        has_padding=False,
        is_packed=False,
        turn_ids=plan.turn_ids,
    )


def _block_limit(plan: AttentionPlan, rules: LayerRules) -> float:
    """Return causal pairs over the pairs in blocks that a kernel of 128×128 has to visit."""
    mask = plan.once(FlexMask, rules).block_mask
    blocks = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    return plan.key_length * (plan.key_length + 1) / 2 / (blocks * BLOCK**2)


@contextlib.contextmanager
def _flash() -> Iterator[None]:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        yield
