"""How long attention takes on this machine: two numbers a kernel, measured once and kept in the user's cache directory."""

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ..attention import AttentionPlan, LayerRules, run_attention
from ..attention.api import BLOCKWISE_FROM, FLEX_FROM, TRITON_FROM
from ..config import HSAConfig
from ..whole_files import write_whole
from .model_shape import ModelShape
from .sample_cost import SampleCost, Tokens, layer_cost


CACHE_NAME = "attention_time.json"
_VERSION = 1  # of what is measured
_HEADS = 8  # at most so many are measured: time grows with their number
_PLAIN, _BIASED = "plain", "dense"
_LENGTHS = {
    _PLAIN: (1024, 2048, 4096),
    _BIASED: (256, 512, 1024),
    "blockwise": (1536, 3072, 6144),
    "flex": (4096, 16384),
    "triton": (4096, 16384),
}
_FROM = {"flex": FLEX_FROM, "triton": TRITON_FROM}  # tokens
_REPEATS = 2
_TURN = 300  # tokens of a turn in what is measured: the median of agents' trajectories


@dataclass(frozen=True)
class Kernel:
    """How long forward and backward take: pair_seconds · pairs + token_seconds · tokens, of one head.

    Attributes:
        pair_seconds: For each pair of tokens that see each other.
        token_seconds: For each token.
    """

    pair_seconds: float
    token_seconds: float

    def seconds(self, pairs: float, tokens: float) -> float:
        """Predict one head's time."""
        return self.pair_seconds * pairs + self.token_seconds * tokens

    @classmethod
    def fit(cls, measured: list[tuple[int, int, float]]) -> "Kernel":
        """Find the two numbers, neither below 0, whose relative errors are smallest.

        Args:
            measured: (pairs, tokens, seconds), two at least.
        """
        rows = np.array([(pairs / seconds, tokens / seconds) for pairs, tokens, seconds in measured])
        best, least = (0.0, 0.0), np.inf
        for used in ([0, 1], [0], [1]):
            found = np.zeros(2)
            found[used] = np.linalg.lstsq(rows[:, used], np.ones(len(rows)), rcond=None)[0]
            error = float(((rows @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = (float(found[0]), float(found[1])), error
        return cls(*best)


@dataclass(frozen=True)
class AttentionTime:
    """Predicts the time of attention, forward and backward, with a model's heads on this machine.

    Attributes:
        machine: Its processor or GPU.
        threads: Of torch; 0 on a GPU.
        heads: Of the model.
        fast: Backend of long rows with HSA.
        fast_from: Tokens of a row from which on it is used.
        kernels: By name.
    """

    machine: str
    threads: int
    heads: int
    fast: str
    fast_from: int
    kernels: dict[str, Kernel]

    def with_hsa(self, cost: SampleCost) -> float:
        """Predict the seconds of a sample in all layers of a model with HSA."""
        total = 0.0
        for pairs, is_causal, number in cost.layers:
            total += number * self._layer(pairs, cost.length, is_causal)
        return total

    def plain(self, cost: SampleCost) -> float:
        """Predict the seconds without HSA."""
        return sum(number * self._layer(pairs, cost.length, True) for pairs, _, number in cost.plain_layers)

    def _layer(self, pairs: int, length: int, is_causal: bool) -> float:
        if is_causal:
            return self.heads * self.kernels[_PLAIN].seconds(pairs, length)
        if self.fast == _BIASED or length < self.fast_from:
            return self.heads * self.kernels[_BIASED].seconds(length * length, length)
        return self.heads * self.kernels[self.fast].seconds(pairs, length)

    @property
    def where(self) -> str:
        """Where it was measured, in words."""
        return f"{self.machine}, {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else self.machine


def attention_time(shape: ModelShape, backend: str, say: Callable[[str], None]) -> AttentionTime:
    """Return what was measured on this machine, or measure it: a few seconds.

    Args:
        shape: The model.
        backend: Of the rules.
        say: Called with a line before something is measured.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fast = backend if backend != "auto" else "triton" if device == "cuda" else "blockwise"
    fast = _BIASED if fast == "reference" else fast
    fast_from = 0 if backend != "auto" else _FROM.get(fast, BLOCKWISE_FROM)
    machine, threads = machine_name(device), 0 if device == "cuda" else torch.get_num_threads()
    kernels, path = {}, cache_path()
    known = _read(path)
    dtype = shape.dtype if device == "cuda" else torch.float32
    layout = f"{shape.heads}/{shape.key_heads} heads of {shape.head_size} {dtype}"
    for name in dict.fromkeys((_PLAIN, _BIASED, fast)):
        key = " | ".join((machine, f"{threads} threads", f"torch {torch.__version__}", layout, name, f"v{_VERSION}"))
        if key not in known:
            say(f"measuring attention on {machine}, once for this machine: {name}, {layout}")
            known[key] = asdict(measure(name, shape, device, dtype))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({**_read(path), **known}, indent=2) + "\n")
        kernels[name] = Kernel(**known[key])
    return AttentionTime(machine, threads, shape.heads, fast, fast_from, kernels)


def measure(name: str, shape: ModelShape, device: str, dtype: torch.dtype) -> Kernel:
    """Measure one kernel with a model's heads, or as many of them as show it."""
    groups = max(shape.heads // shape.key_heads, 1)
    key_heads = max(1, min(shape.key_heads, _HEADS // groups))
    heads = groups * key_heads
    configs = [HSAConfig(), HSAConfig(noise_turns=1)] if name not in (_PLAIN, _BIASED) else [HSAConfig()]
    measured = []
    for length in _LENGTHS[name]:
        for config in configs:
            tokens = typical_tokens(length)
            rules = LayerRules.plain() if name == _PLAIN else LayerRules.of(config)
            pairs = length * length if name == _BIASED else layer_cost(tokens, rules).pairs
            backend = "dense" if name == _PLAIN else name
            query, key, value = (
                torch.randn(1, count, length, shape.head_size, device=device, dtype=dtype, requires_grad=True)
                for count in (heads, key_heads, key_heads)
            )
            seconds = time_attention(query, key, value, tokens.plan(), rules, backend)
            measured.append((pairs, length, seconds / heads))
    return Kernel.fit(measured)


def time_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    rules: LayerRules,
    backend: str,
) -> float:
    """Measure forward and backward of one layer: the seconds of the fastest of a few runs, after one to warm up.

    On one thread it is processor time, which other programs disturb less.
    """
    on_gpu = query.device.type == "cuda"
    clock = time.process_time if torch.get_num_threads() == 1 and not on_gpu else time.perf_counter
    if on_gpu:
        plan = AttentionPlan.from_inputs(
            plan.semantic_ids.to(query.device),
            turn_ids=None if plan.turn_ids is None else plan.turn_ids.to(query.device),
        )
    runs = []
    for _ in range(_REPEATS + 1):
        start = clock()
        output, _weights = run_attention(query, key, value, plan, rules, backend)
        output.sum().backward()
        if on_gpu:
            torch.cuda.synchronize()
        runs.append(clock() - start)
    return min(runs[1:])


def typical_tokens(length: int) -> Tokens:
    """Return tokens of an agent's trajectory: a task, then turns of noise with a landmark now and then."""
    kinds = np.full(length, 2, np.int8)
    kinds[::20] = 1
    kinds[: min(length // 10, 300)] = 0
    turns = np.arange(length, dtype=np.int64) // _TURN
    return Tokens(kinds, turns, np.zeros(length, np.bool_))


def cache_path() -> Path:
    """Return where the measured numbers are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hsa-factory" / CACHE_NAME


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {key: {name: float(one) for name, one in kernel.items()} for key, kernel in values.items()}
    except (OSError, ValueError, AttributeError, TypeError):  # none yet, or broken: it is measured anew
        return {}


def machine_name(device: str) -> str:
    """Name this machine's processor, or for ``cuda`` its GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
