"""The entry to HSA attention: checks the arguments, chooses a backend, says why once."""

import logging
import os
import sys
from collections.abc import Sequence
from functools import cache

import torch
from torch.utils._triton import has_triton

from ..config import BACKENDS, HSAConfig
from ..semantics import SemanticType
from .backends.blockwise import blockwise_attention
from .backends.dense import dense_attention
from .backends.reference import reference_attention
from .layer_rules import LayerRules
from .plan import AttentionPlan


logger = logging.getLogger(__name__)

NEEDS_CUDA = ("flex", "triton")
COMPILER_SWITCHES = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")  # environment variables that switch torch's off
BLOCKWISE_FROM = 1024  # tokens: measured on CPU, forward and backward (benchmarks/attention.py)
TRITON_FROM = (
    128  # tokens: faster than dense from 512 on (H200, docs/benchmarks.md, "On a GPU"); below, the CPU decides
)
FLEX_FROM = 4096  # tokens: measured on an H200, forward and backward (docs/benchmarks.md, "On a GPU")
LARGEST_HEAD = 256  # numbers, that the Triton kernels take
OLDEST_GPU = (8, 0)  # that Triton says it supports
FADED = 20.0  # logits: what loses as much has a probability of nothing
_logged: set[object] = set()


def available_backends() -> tuple[str, ...]:
    """Return the names of the backends that run on this machine."""
    return BACKENDS if torch.cuda.is_available() else tuple(name for name in BACKENDS if name not in NEEDS_CUDA)


def check_backend(backend: str) -> None:
    """Refuse a backend that is unknown or does not run on this machine.

    Raises:
        ValueError: With the backends that are available.
    """
    available = available_backends()
    if backend not in BACKENDS:
        raise ValueError(f"Unknown HSA backend {backend!r}. Available: {', '.join(available)}.")
    if backend not in available:
        raise ValueError(f"The HSA backend {backend!r} needs CUDA. Available here: {', '.join(available)}.")


def hsa_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    semantic_ids: torch.Tensor,
    config: HSAConfig,
    attention_mask: torch.Tensor | None = None,
    document_ids: torch.Tensor | None = None,
    backend: str = "auto",
    scale: float | None = None,
    turn_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention with HSA's bias.

    Legend: B batch, H query heads, Hkv key/value heads (H a multiple of it), L length, D head size.

    Args:
        query: (B, H, L, D).
        key: (B, Hkv, L, D).
        value: (B, Hkv, L, D).
        semantic_ids: (B, L) whole numbers, 0 GLOBAL, 1 LANDMARK, 2 NOISE.
        config: The rules.
        attention_mask: (B, L); 0 is padding, values above 1 number the documents of a packed row. None: all real.
        document_ids: (B, L) numbers of the documents; None: from `attention_mask`.
        backend: ``auto`` takes the configuration's; or a name.
        scale: Factor of q·k; None: 1/√D.
        turn_ids: (B, L) whole numbers, how many replies are over before the message of each token; they never fall
            within a document. Needed where the configuration has `*_turns`.

    Returns:
        (B, H, L, D) in the dtype of `query`. Padded rows are zero and pass no gradient.

    Raises:
        ValueError: If shapes, devices or types disagree, turn numbers fall or are missing, or the backend is unknown or
            not available.
    """
    _check_heads(query, key, value)
    plan = AttentionPlan.from_inputs(
        semantic_ids, attention_mask, document_ids, query_length=query.shape[2], turn_ids=turn_ids
    )
    plan.check(query, key)
    backend = config.backend if backend == "auto" else backend
    return run_attention(query, key, value, plan, LayerRules.of(config), backend, scale)[0]


def run_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    rules: LayerRules,
    backend: str = "auto",
    scale: float | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    dropout: float = 0.0,
    output_attentions: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run one backend on a plan. The arguments are those of `reference_attention`, which honours all of them.

    Args:
        query: (B, H, Q, D).
        key: (B, Hkv, L, D).
        value: (B, Hkv, L, E).
        plan: Built for these lengths.
        rules: Of the layer.
        backend: ``auto`` chooses; or a name.
        scale: Factor of q·k; None: 1/√D.
        softcap: The model's cap of the logits; None: no cap.
        sinks: (H,) attention sinks; None: none.
        dropout: Probability with which attention weights are dropped.
        output_attentions: Return the weights too.

    Returns:
        The output (B, H, Q, E), and the weights (B, H, Q, L) if they were asked for.

    Raises:
        ValueError: If the backend is unknown, not available, or cannot honour an argument.
    """
    if backend != "auto":
        check_backend(backend)
    needs_reference = [
        name
        for name, wanted in (
            ("soft-capped logits", softcap is not None),
            ("attention sinks", sinks is not None),
            ("output_attentions", output_attentions),
        )
        if wanted
    ]
    if rules.has_turns and not plan.has_gaps:
        plan.once(_warn_of_faded, rules)
    if backend == "auto":
        backend, reason = choose_backend(query, plan, rules, needs_reference, dropout, value.shape[-1])
        _log_choice(f"HSA attention uses the {backend} backend ({reason}).")
    if backend in ("blockwise", "flex", "triton") and dropout:
        needs_reference.append("attention dropout")
    if backend != "reference" and needs_reference:
        raise ValueError(
            f"The HSA backend {backend!r} cannot honour {', '.join(needs_reference)}: use 'auto' or 'reference'."
        )

    if backend == "blockwise":
        return blockwise_attention(query, key, value, plan, rules, scale), None
    if backend == "dense":
        return dense_attention(query, key, value, plan, rules, scale, dropout), None
    if backend == "triton":
        obstacle = triton_obstacle(query, value.shape[-1])
        if obstacle:
            raise ValueError(f"The HSA backend 'triton' needs {obstacle}: use 'auto' or 'blockwise'.")
        from .backends.triton.attention import triton_attention  # here: Triton is not everywhere

        return triton_attention(query, key, value, plan, rules, scale), None
    if backend == "flex":
        obstacle = flex_obstacle(query)
        if obstacle:
            raise ValueError(f"The HSA backend 'flex' needs {obstacle}: use 'auto' or 'blockwise'.")
        from .backends.flex import flex_hsa_attention  # here: it imports torch's compiler

        return flex_hsa_attention(query, key, value, plan, rules, scale), None

    output, weights = reference_attention(query, key, value, plan, rules, scale, softcap, sinks, dropout)
    return output, weights if output_attentions else None


def choose_backend(
    query: torch.Tensor,
    plan: AttentionPlan,
    rules: LayerRules,
    needs_reference: Sequence[str] = (),
    dropout: float = 0.0,
    value_size: int | None = None,
) -> tuple[str, str]:
    """Return the backend that ``auto`` takes, and the reason.

    Args:
        query: (B, H, Q, D); only its shape, dtype and device count.
        plan: Built for these lengths.
        rules: Of the layer.
        needs_reference: In words, what only `reference` can honour.
        dropout: Probability with which attention weights are dropped.
        value_size: E; None: that of `query`.
    """
    if needs_reference:
        return "reference", f"for {', '.join(needs_reference)}"
    if dropout:
        return "dense", "for attention dropout"
    fast, shortest = "blockwise", BLOCKWISE_FROM
    if plan.device.type == "cuda":
        if triton_obstacle(query, value_size) is None:
            fast, shortest = "triton", TRITON_FROM
        elif flex_obstacle(query) is None:
            fast, shortest = "flex", FLEX_FROM
        else:
            shortest = 2 * FLEX_FROM
    if plan.query_length < shortest:
        return "dense", f"rows shorter than {shortest} tokens"
    if plan.is_causal(rules):
        return "dense", "nothing is hidden or fades: plain causal attention"
    return fast, f"rows of {shortest} tokens and more"


def triton_obstacle(query: torch.Tensor, value_size: int | None = None) -> str | None:
    """Return what the Triton kernels lack for these tensors; None: nothing.

    Args:
        query: (B, H, Q, D); only its shape, dtype and device count.
        value_size: E; None: D.
    """
    if query.device.type != "cuda":
        return f"tensors on CUDA, got {query.device.type}"
    if torch.version.hip is not None:
        return "CUDA, got ROCm"
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"float32, bfloat16 or float16, got {query.dtype}"
    if _capability(query.device) < OLDEST_GPU:
        return f"a GPU of compute capability {'.'.join(map(str, OLDEST_GPU))} or more"
    largest = max(query.shape[-1], value_size or 0)
    if largest > LARGEST_HEAD:
        return f"heads of up to {LARGEST_HEAD}, got {largest}"
    return None if has_triton() else "Triton"


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def flex_obstacle(query: torch.Tensor) -> str | None:
    """Return what flex attention lacks for these tensors; None: nothing."""
    if query.device.type != "cuda":
        return f"tensors on CUDA, got {query.device.type}"
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"float32, bfloat16 or float16, got {query.dtype}"
    if query.shape[-1] < 16:
        return f"heads of 16 and more, got {query.shape[-1]}"
    if _compiler_is_off():
        return "torch's compiler, which TORCHDYNAMO_DISABLE or TORCH_COMPILE_DISABLE switches off"
    return None if has_triton() else "Triton"


def _compiler_is_off() -> bool:
    """Whether what is compiled would run as it is, without a word: the flex kernel in N×N memory."""
    config = sys.modules.get("torch._dynamo.config")  # imported with the compiler, which takes a while
    return any(os.environ.get(name) == "1" for name in COMPILER_SWITCHES) or getattr(config, "disable", False)


def _check_heads(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have shape (batch, heads, length, head size), got {tuple(tensor.shape)}.")
        if tensor.device != query.device or tensor.dtype != query.dtype:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, but query is {query.dtype} on {query.device}."
            )
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(f"key {tuple(key.shape)} and value {tuple(value.shape)} differ in batch, heads or length.")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query has head size {query.shape[-1]}, key has {key.shape[-1]}.")
    if key.shape[1] == 0 or query.shape[1] % key.shape[1] != 0:
        raise ValueError(f"{query.shape[1]} query heads are not a multiple of {key.shape[1]} key/value heads.")


def _warn_of_faded(plan: AttentionPlan, rules: LayerRules) -> None:
    """Warn, once for the same rules, of keys that turns let see and a decay hides all the same."""
    for kind in SemanticType:
        turns, decay = rules.turns[kind], rules.decays[kind]
        what = (kind, turns, decay)
        if turns is None or decay == 0 or what in _logged or plan.semantic_ids.numel() == 0:
            continue
        reach = (plan.last_seen(rules) - plan.positions).masked_fill(plan.semantic_ids != kind, 0)
        longest = int(reach.amax())
        if decay * longest > FADED:
            _logged.add(what)
            name = kind.name.lower()
            logger.warning(
                f"{name}_turns = {turns} lets {kind.name} be seen from up to {longest} tokens, but {name}_decay = {decay:g} "
                f"takes {decay * longest:g} off the logit there: it is seen in name only. Set `{name}_decay: 0`, or less "
                f"than {FADED:g} / {longest}."
            )


def _log_choice(message: str) -> None:
    if message not in _logged:
        _logged.add(message)
        logger.info(message)
