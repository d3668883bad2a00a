"""The two forward hooks that turn `semantic_ids` into one plan per forward and check that it arrived."""

import inspect
import logging
import threading
from typing import Any

import torch
from torch import nn

from ..attention import AttentionPlan
from ..config import HSAConfig
from .attention_interface import PLAN_KEYWORD, active_forwards
from .cache.hsa_cache import HSACache


logger = logging.getLogger(__name__)


class ForwardPass(threading.local):
    """The forward pass of a model that is under way in a thread.

    Attributes:
        plan: Its plan; None between passes and without `semantic_ids`.
        layer_plans: With an `HSACache`, the plan of each layer: they may hold different keys.
        cache: That cache.
        mask_windows: Sliding windows for which the model asked a mask.
        layer_windows: Sliding windows with which its attention was called.
    """

    def __init__(self) -> None:
        self.forget()
        self.mask_windows: set[int | None] = set()
        self.layer_windows: set[int | None] = set()

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), ()  # a copy of the model is in no forward pass

    def forget(self) -> None:
        """End the pass."""
        self.plan: AttentionPlan | None = None
        self.layer_plans: dict[int, AttentionPlan] | None = None
        self.cache: HSACache | None = None


class HSAHook:
    """HSA's state on one model.

    Attributes:
        config: The rules.
        former_implementation: Name of the attention implementation before `enable_hsa`.
        model_name: For messages.
        windows: The model's own sliding window (or None) of each layer whose attention HSA must reach.
        is_hybrid: Whether the model has layers without softmax attention.
        forward_pass: The forward pass under way.
        tokenizer: For rules that look at the text of generated tokens, where `generate` is given none; None: unknown.
    """

    def __init__(
        self,
        config: HSAConfig,
        former_implementation: str,
        model_name: str,
        windows: dict[int, int | None],
        is_hybrid: bool = False,
    ) -> None:
        self.config = config
        self.former_implementation = former_implementation
        self.model_name = model_name
        self.windows = windows
        self.is_hybrid, self.warned = is_hybrid, False
        self.forward_pass = ForwardPass()
        self.tokenizer: Any = None

    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take `semantic_ids` (and `document_ids`) out of the keywords and put the plan in.

        Raises:
            ValueError: If a training forward has no `semantic_ids`, or they do not fit the input.
        """
        semantic_ids = kwargs.pop("semantic_ids", None)
        document_ids = kwargs.pop("document_ids", None)
        now = self.forward_pass
        now.forget()
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, HSACache)), None)
        if cache is not None or semantic_ids is not None:
            given = kwargs
            if args:
                given = _signature(type(module)).bind_partial(module, *args, **kwargs).arguments
            if cache is not None:
                self._plan_cached(module, cache, given, semantic_ids, document_ids)
            else:
                now.plan = self._build_plan(given, semantic_ids, document_ids)
        elif module.training and torch.is_grad_enabled():
            raise ValueError(
                f"{self.model_name} has HSA enabled, but this training forward got no `semantic_ids`. Most often "
                "the Trainer dropped the column: set `remove_unused_columns: false` and use a collator that pads "
                "semantic_ids. (Inference without semantic_ids is plain attention.)"
            )
        if now.plan is not None:
            kwargs[PLAN_KEYWORD] = now.plan

        now.mask_windows.clear()
        now.layer_windows.clear()
        if self in active_forwards.hooks:  # left behind by an interrupt, after which torch calls no hooks
            active_forwards.hooks.remove(self)
        active_forwards.hooks.append(self)
        return args, kwargs

    def after_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Close the pass; if the plan did not reach every softmax layer, say so instead of training without HSA.

        Raises:
            ValueError: If a layer or a sliding window was left out.
        """
        if self in active_forwards.hooks:
            active_forwards.hooks.remove(self)
        now = self.forward_pass
        plan, cache = now.plan, now.cache
        now.forget()
        if cache is not None:
            cache.commit() if output is not None else cache.abort()
            cache.keep_rope_deltas(vars(module).get("rope_deltas"))
        if plan is None or output is None:  # output is None when the forward raised
            return

        missing = sorted(set(self.windows) - plan.calls)
        if missing:
            raise ValueError(
                f"{self.model_name} does not hand keywords on to its attention: HSA's plan did not reach layers "
                f"{missing}. This model cannot be used with HSA."
            )
        lost = {window for window in now.mask_windows - now.layer_windows if window is not None}
        if lost and "sliding_attention" in (getattr(module.config, "layer_types", None) or ["sliding_attention"]):
            raise ValueError(
                f"{self.model_name} has a sliding window of {lost} that its attention layers are not told of, so HSA "
                "cannot honour it."
            )

    def _plan_cached(
        self,
        module: nn.Module,
        cache: HSACache,
        given: dict[str, Any],
        semantic_ids: torch.Tensor | None,
        document_ids: torch.Tensor | None,
    ) -> None:
        """Let an `HSACache` plan the pass: it knows the positions and types of the keys it holds."""
        tokens, attention_mask = self._tokens(given), given.get("attention_mask")
        if document_ids is not None:
            raise ValueError("A packed row (document_ids) cannot be cached: run its documents on their own.")
        cache.bind(module.config, self.windows, self.config)
        if self.is_hybrid and cache.get_seq_length():
            if tokens.shape[1] > 1:
                raise ValueError(
                    f"{self.model_name} has layers without softmax attention, which go on from a cache by one token at "
                    f"a time only; got {tokens.shape[1]}. Pass them one by one, as model.generate() does."
                )
            self.refuse_padding(attention_mask, cache.get_seq_length())
        if cache.get_seq_length() and cache.rope_deltas is not None:
            module.rope_deltas = cache.rope_deltas  # another conversation may have left its own
        now = self.forward_pass
        now.layer_plans = cache.begin(tokens, semantic_ids, attention_mask, self.config)
        now.plan, now.cache = next(iter(now.layer_plans.values())), cache

    def refuse_padding(self, attention_mask: torch.Tensor | None, start: int) -> None:
        """Refuse padding after text where a layer would read it as text, or has. `attention_mask`: (B, …)."""
        if attention_mask is not None and not bool(attention_mask[:, start:].all()):
            raise ValueError(
                f"{self.model_name} has layers without softmax attention, which read padding after text as text: give rows "
                "of different lengths, and those that end before the others, a cache each."
            )

    def _tokens(self, given: dict[str, Any]) -> torch.Tensor:
        tokens = given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        if tokens is None:
            raise ValueError(f"{self.model_name}: pass input_ids or inputs_embeds along with semantic_ids.")
        if isinstance(given.get("attention_mask"), dict):
            raise ValueError(f"{self.model_name}: HSA needs the 2-D attention_mask, got prepared masks.")
        return tokens

    def _build_plan(
        self, given: dict[str, Any], semantic_ids: torch.Tensor, document_ids: torch.Tensor | None
    ) -> AttentionPlan:
        tokens = self._tokens(given)
        if not isinstance(semantic_ids, torch.Tensor):
            raise ValueError(f"semantic_ids must be a tensor, got {type(semantic_ids).__name__}.")

        past = given.get("past_key_values")
        past_length = int(past.get_seq_length()) if past is not None else 0
        query_length = tokens.shape[1]
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
        if attention_mask is None and document_ids is None and past_length == 0:
            document_ids = _documents_from_positions(given.get("position_ids"), tokens.shape[0])

        plan = AttentionPlan(semantic_ids, self.config, attention_mask, document_ids, query_length)
        if self.is_hybrid and not self.warned and plan.has_packed_rows():
            self.warned = True
            logger.warning(
                f"{self.model_name} has layers without softmax attention, which mix the documents of a packed row as they "
                "do without HSA. Turn `neat_packing` off for this model."
            )
        return plan


_signatures: dict[type, inspect.Signature] = {}


def _signature(model_class: type) -> inspect.Signature:
    """Return a forward's signature; to make one is slow enough to be seen in a short step."""
    if model_class not in _signatures:
        _signatures[model_class] = inspect.signature(model_class.forward)
    return _signatures[model_class]


def _documents_from_positions(position_ids: torch.Tensor | None, batch_size: int) -> torch.Tensor | None:
    """Find packed documents as transformers does without a mask: a new one begins where positions do not go up by 1.

    Args:
        position_ids: (B, L) or (1, L). Of 3-D ones (M-RoPE) only (4, B, L) tell documents apart: by the first row,
            the text's; (3, B, L) say nothing.
        batch_size: B.

    Returns:
        (B, L) numbers from 0, or None.
    """
    if position_ids is not None and position_ids.dim() == 3 and position_ids.shape[0] == 4:
        position_ids = position_ids[0]
    if position_ids is None or position_ids.dim() != 2:
        return None

    position_ids = position_ids.expand(batch_size, -1)
    first = position_ids[:, :1] - 1
    return (torch.diff(position_ids, prepend=first, dim=-1) != 1).long().cumsum(dim=-1)
