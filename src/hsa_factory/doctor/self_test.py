"""Every backend on this device against the reference on the CPU: outputs and gradients, on small rows of every kind."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..attention import AttentionPlan, reference_attention, run_attention
from .scrub import scrub
from .self_test_cases import Case, make_cases


PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
LENGTH = 331  # tokens: no multiple of a block, and several blocks
_TENSORS = ("the output", "the gradient of the query", "the gradient of the key", "the gradient of the value")
_HEADS, _KEY_HEADS, _HEAD_SIZE = 4, 2, 64
_TOLERANCES = {("cpu", torch.float32): 2e-5, ("cuda", torch.float32): 2e-4}  # kernels on a GPU add up in another order
_HALF_TOLERANCE = 3e-2  # of half precision: it has two or three digits


@dataclass(frozen=True)
class Outcome:
    """What came of one backend, type of numbers and case.

    Attributes:
        backend: Its name.
        dtype: Such as ``bfloat16``.
        case: What the rows are.
        status: ``passed``, ``failed`` or ``not run``.
        error: Largest difference, as a share of the largest value expected; None: nothing to compare.
        tolerance: What is allowed.
        what: What is wrong, in words; empty: nothing is.
        seconds: It took, the compilation of a kernel included; None: it was not run.
    """

    backend: str
    dtype: str
    case: str
    status: str
    error: float | None
    tolerance: float
    what: str = ""
    seconds: float | None = None


def run_self_test(
    device: torch.device,
    backends: Sequence[str],
    dtypes: Sequence[torch.dtype],
    advance: Callable[[str], None],
    length: int = LENGTH,
    limit_s: float = 50.0,
) -> list[Outcome]:
    """Test backends, half precision first, and those that ``auto`` takes for long rows before the others.

    Args:
        device: Where.
        backends: Names.
        dtypes: Types of numbers.
        advance: Called before each test with what it is.
        length: Tokens of a row.
        limit_s: Seconds after which no further test begins: the rest is ``not run``.
    """
    end = time.monotonic() + limit_s
    cases = make_cases(length)
    outcomes = []
    for dtype in dtypes:
        wanted = [_expected(case, dtype) for case in cases]
        for backend in backends:
            for case, expected in zip(cases, wanted):
                advance(f"{backend}, {_name(dtype)}: {case.name}")
                if time.monotonic() > end:
                    tolerance = _tolerance(device, dtype)
                    outcomes.append(
                        Outcome(backend, _name(dtype), case.name, NOT_RUN, None, tolerance, "no time left")
                    )
                else:
                    outcomes.append(_test(backend, device, dtype, case, expected))
    return outcomes


def count_tests(backends: Sequence[str], dtypes: Sequence[torch.dtype]) -> int:
    """How often `run_self_test` calls `advance`."""
    return len(backends) * len(dtypes) * len(make_cases(LENGTH))


def _test(backend: str, device: torch.device, dtype: torch.dtype, case: Case, expected: list[torch.Tensor]) -> Outcome:
    tolerance, start = _tolerance(device, dtype), time.monotonic()
    try:
        actual = _attend(backend, case, dtype, device)
        error, what = _compare(actual, expected, tolerance)
    except Exception as failure:  # of a kernel or its compiler: anything can come
        error, what = None, scrub(failure)
    status, seconds = FAILED if what else PASSED, round(time.monotonic() - start, 3)
    return Outcome(backend, _name(dtype), case.name, status, error, tolerance, what, seconds)


def _compare(actual: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> tuple[float | None, str]:
    """Return the largest error, and what is wrong."""
    worst, wrong = 0.0, []
    for name, got, wanted in zip(_TENSORS, actual, expected, strict=True):
        if not bool(got.isfinite().all()):
            return None, f"{name} is not finite"
        error = float((got - wanted).abs().max() / wanted.abs().max())
        worst = max(worst, error)
        if error > tolerance:
            wrong.append(f"{name} is {error:.1e} off")
    return worst, f"{', '.join(wrong)} (allowed: {tolerance:.0e} of the largest value)" if wrong else ""


def _expected(case: Case, dtype: torch.dtype) -> list[torch.Tensor]:
    """Compute with the reference in float32 on the CPU, on numbers rounded as the backends get them."""
    return _attend(None, case, dtype, torch.device("cpu"))


def _attend(backend: str | None, case: Case, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """Return the output and the gradients in float32 on the CPU, zeros at padding; backend None: the reference."""
    plan, rules = case.plan(device), case.rules
    tensors = [tensor.to(dtype) for tensor in _draw(plan, case.poison)]
    upstream = tensors.pop()
    kind = torch.float32 if backend is None else dtype
    leaves = [tensor.to(device=device, dtype=kind).requires_grad_() for tensor in tensors]
    query, key, value = leaves
    if backend is None:
        output = reference_attention(query, key, value, plan, rules)[0]
    else:
        output = run_attention(query, key, value, plan, rules, backend)[0]
    if plan.is_padding is not None:
        output = output.masked_fill(plan.is_padding[:, None, -plan.query_length :, None], 0)
    output.backward(upstream.to(device=device, dtype=kind))
    results = [output.detach()]
    for leaf in leaves:
        if leaf.grad is None:
            raise RuntimeError("a gradient is missing")
        results.append(leaf.grad)
    return [tensor.float().cpu() for tensor in results]


def _draw(plan: AttentionPlan, poison: bool) -> list[torch.Tensor]:
    """Return query, key, value and a gradient of the output; what stands at padding is NaN if they are poisoned."""
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (_HEADS, plan.query_length),
        (_KEY_HEADS, plan.key_length),
        (_KEY_HEADS, plan.key_length),
        (_HEADS, plan.query_length),
    )
    tensors = [torch.randn(plan.batch_size, *shape, _HEAD_SIZE, generator=generator) for shape in shapes]
    if poison and plan.is_padding is not None:
        padding = plan.is_padding.cpu()[:, None, :, None]
        tensors[:3] = [tensor.masked_fill(padding[:, :, -tensor.shape[2] :], float("nan")) for tensor in tensors[:3]]
    return tensors


def _tolerance(device: torch.device, dtype: torch.dtype) -> float:
    return _TOLERANCES.get((device.type, dtype), _HALF_TOLERANCE)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
