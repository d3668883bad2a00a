"""The forward hooks that turn `semantic_ids` into one plan per forward and check that it arrived."""

import logging
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ..attention import AttentionPlan
from ..user_errors import shows_tracebacks
from .by_name import by_name, signature
from .cache.hsa_cache import HSACache
from .context_parallel.checks import check_liger, check_router
from .forward_pass import (
    KEYWORD,
    ForwardPass,
    HSAState,
    enter,
    enter_outer,
    leave,
    leave_outer,
    take_waiting,
    wait_for_outer,
)
from .packing import find_documents, refuse_packed, without_documents
from .parallelism import check_parallelism
from .rope_positions import forward_positions, has_mrope, text_axes
from .text_model import SLIDING_LAYERS
from .transformers_versions import CACHE, find_cache


logger = logging.getLogger(__name__)

_USE_HSA_CACHE = f"Pass {CACHE}=hsa_factory.models.HSACache(config), or call model.generate, which makes one"


def before_forward(
    state: HSAState, module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Take `semantic_ids` (and `document_ids`, `turn_ids`) out of the keywords and put the forward pass in.

    Raises:
        ValueError: If a training forward has no `semantic_ids`, they do not fit the input, the rules need `turn_ids` and
            there are none, the batch has weights, or sequences are cut up among devices in a way that HSA does not know.
    """
    state.is_reached = True
    _leave(state, module)
    earlier = take_waiting(state)  # a model that runs its text model more than once
    if earlier is not None:
        _finish(earlier)
    if "loss_weights" in kwargs:
        raise ValueError(
            f"{state.model_name} was given `loss_weights`, which its loss leaves out: use a trainer class of "
            "hsa_factory.training.hsa_trainer(Trainer), take them out of the batch, or remove the weights from the data."
        )
    semantic_ids = kwargs.pop("semantic_ids", None)
    document_ids, turn_ids = kwargs.pop("document_ids", None), kwargs.pop("turn_ids", None)
    cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, HSACache)), None)
    if state.context is not None and (cache is not None or semantic_ids is None):
        raise ValueError(
            f"{state.model_name} shares its rows among ranks (context_parallel), which needs `semantic_ids` and knows no cache: "
            "generate, or attend without types, on a model enabled without context_parallel."
        )
    if cache is None and semantic_ids is None:
        if module.training and torch.is_grad_enabled():
            raise ValueError(
                f"{state.model_name} has HSA enabled, but this training forward got no `semantic_ids`. Most often "
                "the Trainer dropped the column: set `remove_unused_columns: false` and use a collator that pads "
                "semantic_ids. (Inference without semantic_ids is plain attention.)"
            )
        enter(ForwardPass(state))
        return args, kwargs

    kwargs = by_name(module, args, kwargs)
    if cache is not None:
        forward = _pass_with_cache(state, module, cache, kwargs, semantic_ids, document_ids, turn_ids)
    else:
        check_parallelism()
        plan = _plan_of(state, kwargs, semantic_ids, document_ids, turn_ids)
        forward = ForwardPass(state, plan)
        if state.context is not None:
            check_router(module, kwargs)
            forward.context = state.context.begin(plan, kwargs)
        kwargs = without_documents(kwargs, keeps_lengths=state.is_hybrid)
    enter(forward)
    return (), {**kwargs, KEYWORD: forward}


def before_text_forward(module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Tell the cache of a pass the rotary positions with which the text model is called, whoever has found them."""
    forward: ForwardPass | None = kwargs.get(KEYWORD)
    if forward is not None and forward.cache is not None:
        positions: torch.Tensor | None = by_name(module, args, kwargs).get("position_ids")
        if positions is not None and positions.dim() == 3:
            positions = positions[-forward.text_axes :].amax(dim=0)
        forward.cache.note_rope_positions(positions)


def after_forward(
    state: HSAState, module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    """Close the pass; if it did not reach every softmax layer, say so instead of training without HSA.

    Raises:
        ValueError: If a layer or a sliding window was left out.
    """
    forward = _leave(state, module)
    if forward is None:
        return
    if forward.context is not None and shows_tracebacks():
        logger.info(f"HSA context parallelism: {forward.context.traffic()}.")
    has_failed = output is None
    problem = None if has_failed or forward.plan is None else _left_out(forward, module)
    if has_failed or problem:
        _give_up(forward)
    elif not wait_for_outer(forward):
        _finish(forward)
    if problem:
        raise ValueError(problem)


def before_outer_forward(
    state: HSAState, module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Note that the model's head follows its text model: what a cache takes in counts once that has ended well, too.

    Raises:
        ValueError: If rows are cut among ranks, and Liger has replaced the forward meanwhile.
    """
    if state.context is not None:
        check_liger(module)
        state.context.given = by_name(module, args, kwargs)
    enter_outer(state)


def after_outer_forward(
    state: HSAState, module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    """End a pass for good.

    Raises:
        ValueError: If the model was given types and has called a part of its base model instead of that, which reads them.
    """
    forward = leave_outer(state)
    if state.context is not None:
        state.context.given = None
    has_types = output is not None and kwargs.get("semantic_ids") is not None
    # a compiled model would be compiled again when the flag changes
    if has_types and not torch.compiler.is_compiling() and not state.is_reached:
        raise ValueError(
            f"{state.model_name} does not call its base model as a whole, so that semantic_ids were lost: HSA cannot be used "
            "with it."
        )
    if forward is not None and output is None:
        _give_up(forward)
    elif forward is not None:
        _finish(forward)


def _leave(state: HSAState, entry: Any) -> ForwardPass | None:
    """End a model's pass and return it; the model has its own memory again. None: it has none under way."""
    forward = leave(state)
    if forward is not None and forward.cache is not None and has_mrope(entry):
        entry.rope_deltas = forward.own_rope_deltas
    return forward


def _finish(forward: ForwardPass) -> None:
    if forward.cache is not None:
        forward.cache.commit()


def _give_up(forward: ForwardPass) -> None:
    if forward.cache is not None:
        forward.cache.abort()


def _left_out(forward: ForwardPass, module: PreTrainedModel) -> str | None:
    """Say which layer or window the pass did not reach; None: none."""
    name = forward.state.model_name
    missing = sorted(set(forward.state.windows) - forward.layers_reached)
    if missing:
        return (
            f"{name} does not hand keywords on to its attention: HSA's plan did not reach layers {missing}. This model "
            "cannot be used with HSA."
        )
    lost = {window for window in forward.mask_windows - forward.layer_windows if window is not None}
    if lost and not SLIDING_LAYERS.isdisjoint(getattr(module.config, "layer_types", None) or SLIDING_LAYERS):
        return f"{name} has a sliding window of {lost} that its attention layers are not told of, so HSA cannot honour it."
    return None


def _pass_with_cache(
    state: HSAState,
    module: Any,
    cache: HSACache,
    kwargs: dict[str, Any],
    semantic_ids: torch.Tensor | None,
    document_ids: torch.Tensor | None,
    turn_ids: torch.Tensor | None,
) -> ForwardPass:
    """Let an `HSACache` plan the pass: it knows the positions and types of the keys it holds.

    `kwargs` get the `position_ids` at which the tokens go on.
    """
    tokens, attention_mask = _tokens(state, kwargs), kwargs.get("attention_mask")
    if hasattr(module, "_cached_decode_position_ids"):
        raise ValueError(
            f"{state.model_name} gives the image that it draws positions which an HSACache does not know: use it without one."
        )
    if document_ids is not None:
        raise ValueError("A packed row (document_ids) cannot be cached: run its documents on their own.")
    cache.bind(module.config, state.layer_rules, state.config)
    seen = cache.get_seq_length()
    if state.is_hybrid and seen:
        if tokens.shape[1] > 1:
            raise ValueError(
                f"{state.model_name} has layers without softmax attention, which go on from a cache by one token at "
                f"a time only; got {tokens.shape[1]}. Pass them one by one, as model.generate() does."
            )
        state.refuse_padding(attention_mask, seen)
    layer_plans = cache.begin(tokens, semantic_ids, attention_mask, turn_ids)
    try:
        refuse_packed(kwargs, tokens.shape[0], tokens.shape[1], seen)
        position_ids = forward_positions(module, state.model_name, kwargs, cache)
    except BaseException:
        cache.abort()
        raise
    if position_ids is not None and "position_ids" in signature(type(module)).parameters:
        kwargs["position_ids"] = position_ids
    forward = ForwardPass(state, next(iter(layer_plans.values())), layer_plans, cache)
    if has_mrope(module):
        forward.own_rope_deltas, module.rope_deltas = module.rope_deltas, cache.rope_deltas
        forward.text_axes = text_axes(module)
    return forward


def _tokens(state: HSAState, given: dict[str, Any]) -> torch.Tensor:
    tokens: torch.Tensor | None = given.get("input_ids")
    tokens = given.get("inputs_embeds") if tokens is None else tokens
    if tokens is None:
        raise ValueError(f"{state.model_name}: pass input_ids or inputs_embeds along with semantic_ids.")
    if isinstance(given.get("attention_mask"), dict):
        raise ValueError(f"{state.model_name}: HSA needs the 2-D attention_mask, got prepared masks.")
    return tokens


def _plan_of(
    state: HSAState,
    given: dict[str, Any],
    semantic_ids: Any,
    document_ids: torch.Tensor | None,
    turn_ids: torch.Tensor | None,
) -> AttentionPlan:
    tokens = _tokens(state, given)
    if not isinstance(semantic_ids, torch.Tensor):
        raise ValueError(f"semantic_ids must be a tensor, got {type(semantic_ids).__name__}.")

    past = find_cache(given)
    query_length = tokens.shape[1]
    past_length = _past_length(state, past, query_length)
    expected = (tokens.shape[0], past_length + query_length)
    if tuple(semantic_ids.shape) != expected:
        cached = f" ({past_length} of them cached)" if past_length else ""
        raise ValueError(
            f"semantic_ids has shape {tuple(semantic_ids.shape)}, but the input has (batch, length) = "
            f"{expected}{cached}."
        )
    if semantic_ids.device != tokens.device:
        raise ValueError(f"semantic_ids are on {semantic_ids.device}, the input is on {tokens.device}.")

    attention_mask = given.get("attention_mask")
    document_ids = find_documents(given, tokens.shape[0], query_length, past_length, document_ids)
    plan = AttentionPlan.from_inputs(semantic_ids, attention_mask, document_ids, query_length, turn_ids=turn_ids)
    for rules in dict.fromkeys(state.layer_rules.values()):
        plan.turns(rules)  # an error if they are missing
    if state.is_hybrid and plan.has_packed_rows():
        raise ValueError(
            f"{state.model_name} has layers without softmax attention, whose state runs on from one document of a packed row "
            "into the next, so that samples would see each other: set `neat_packing: false` and `packing: false`, or give "
            "each document a row of its own."
        )
    return plan


def _past_length(state: HSAState, past: Any, query_length: int) -> int:
    """Return how many tokens a cache of transformers' own holds; None: 0.

    Raises:
        ValueError: If a layer with softmax attention would get other keys than those of all tokens.
    """
    if past is None:
        return 0
    if not hasattr(past, "get_seq_length"):
        raise ValueError(f"{CACHE} of {type(past).__name__} cannot be used with semantic_ids. {_USE_HSA_CACHE}.")
    length = int(past.get_seq_length())
    sizes = (past.get_mask_sizes(query_length, layer) for layer in state.windows if isinstance(past, Cache))
    if any(tuple(size) != (length + query_length, 0) for size in sizes):
        raise ValueError(
            f"{type(past).__name__} cannot be used with semantic_ids: some layers get other keys than those of the {length} "
            f"tokens before (it has a fixed size, or forgets what a sliding window hides). {_USE_HSA_CACHE}."
        )
    return length
