"""`model.generate(input_ids, semantic_ids=…)`: transformers' own generation with an `HSACache` and typed tokens."""

import functools
import inspect
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel

from ...attention.inputs import missing_turns
from ...config import HSAConfig
from ..cache import HSACache, Tagger
from ..cache.turns import check_turn_ids, settle_turns
from ..forward_pass import HSAState
from ..instance_method import put_back
from ..packing import PACKED_INPUTS
from ..rope_positions import own_rope_deltas
from ..transformers_versions import CACHE, is_checkpointing, name_cache
from .prefill import prefill
from .rule_tagger import make_tagger


# Threads that share a model take turns: transformers' `generate` leaves a conversation's M-RoPE offsets on it, for one.
_locks: "weakref.WeakKeyDictionary[HSAState, threading.RLock]" = weakref.WeakKeyDictionary()

_NAME = "generate"  # of the method that is replaced on a model
_REFUSED = {
    "assistant_model": "assisted decoding takes tokens back, but dropped keys are gone",
    "prompt_lookup_num_tokens": "prompt lookup takes tokens back, but dropped keys are gone",
    "assistant_early_exit": "assisted decoding takes tokens back, but dropped keys are gone",
    "inputs_embeds": "types belong to input_ids",
    "position_ids": "HSA counts the positions itself",
    **dict.fromkeys(
        (*PACKED_INPUTS, "document_ids"), "a packed row cannot be cached: generate from its documents on their own"
    ),
    "cache_implementation": f"HSA brings its own cache; pass {CACHE}=HSACache(config) to set it up",
    "prefill_chunk_size": "HSA takes long prompts in chunks by itself",
    "custom_generate": "only transformers' greedy search, sampling and beam search are supported",
    "penalty_alpha": "only greedy search, sampling and beam search are supported",
    "guidance_scale": "classifier-free guidance runs a second prompt that has no types",
    "token_healing": "it changes tokens of the prompt, which have types",
    "dola_layers": "only greedy search, sampling and beam search are supported",
    "negative_prompt_ids": "classifier-free guidance runs a second prompt that has no types",
}


class Generate:
    """A model's `generate` that takes `semantic_ids` and attends with HSA; it is copied and pickled with the model.

    Args:
        model: The model.
        state: HSA's state.
    """

    def __init__(self, model: PreTrainedModel, state: HSAState) -> None:
        self.model, self.state = model, state
        self.former: Callable[..., Any] = getattr(model, _NAME)
        self.replaced = vars(model).get(_NAME)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.former)

    def __call__(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers does, attending with HSA.

        Takes what transformers' `generate` takes, and:

        Args:
            inputs: As `input_ids` in `kwargs`.
            args: Passed on.
            kwargs: `semantic_ids`: (B, L), the types of `input_ids`; None: all are of the default type. `turn_ids`: (B, L)
                integers, the turns of `input_ids`, needed where the rules have turns; what is generated has the prompt's
                last. `tagger`: types the tokens as they are generated; None: as the configuration says. The rest is passed
                on.

        Raises:
            ValueError: If something does not fit, or is asked for that HSA cannot honour.
        """
        if not self.state.is_on:  # somebody has put a `generate` of his own above this one, and disabled HSA since
            return self.former(inputs, *args, **kwargs)
        with generation_lock(self.state):
            return self._generate(inputs, args, kwargs)

    def _generate(self, inputs: torch.Tensor | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        model, config = self.model, self.state.config
        semantic_ids, turn_ids = kwargs.pop("semantic_ids", None), kwargs.pop("turn_ids", None)
        tagger = kwargs.pop("tagger", None)
        name_cache(kwargs)
        cache = kwargs.get(CACHE)
        if semantic_ids is None and tagger is None and not isinstance(cache, HSACache) and is_plain(config):
            return self.former(inputs, *args, **kwargs)

        generation_config = args[0] if args else kwargs.get("generation_config")
        option = functools.partial(_option, kwargs, generation_config, model.generation_config)
        _check_options(model, option, kwargs, tagger)
        if inputs is not None and kwargs.get("input_ids") is not None:
            raise ValueError("generate() got its prompt twice: as inputs and as input_ids.")
        input_ids = kwargs.pop("input_ids", inputs)
        _check_prompt(model, input_ids, option)
        cache = _prepare_cache(cache, config)
        semantic_ids = _prepare_types(semantic_ids, input_ids, cache, config)
        cache.check_ids(input_ids)

        end_ids = _token_ids(option("eos_token_id"))
        pad_token_id = next(iter(_token_ids(option("pad_token_id")) + end_ids), None)
        kwargs["attention_mask"] = _prepare_mask(kwargs.get("attention_mask"), input_ids, cache, pad_token_id, end_ids)
        turn_ids = _prepare_turns(turn_ids, input_ids, kwargs["attention_mask"], config)
        beams, copies = option("num_beams") or 1, option("num_return_sequences") or 1
        rows_end_apart = beams == 1 and len(input_ids) * copies > 1
        tagger = tagger or make_tagger(config, kwargs.get("tokenizer") or self.state.tokenizer)
        with cache.attempt(), own_rope_deltas(model.base_model):
            cache.expect(semantic_ids, tagger, end_ids if rows_end_apart else (), turn_ids)
            prefill(model, self.state, input_ids, cache, kwargs, max(beams, copies))
            kwargs |= {CACHE: cache, "use_cache": True}
            output = self.former(input_ids, *args, **kwargs)
        if beams == 1:
            cache.note_ids(output if isinstance(output, torch.Tensor) else output.sequences)
        return output


def generation_lock(state: HSAState) -> AbstractContextManager[Any]:
    """Return the lock by which generations of one model take turns; the thread that holds it may generate."""
    return _locks.setdefault(state, threading.RLock())


def install_generate(model: PreTrainedModel, state: HSAState) -> None:
    """Let a model's `generate` take `semantic_ids`; nothing happens if it has no `generate`."""
    if isinstance(model, GenerationMixin) and not isinstance(vars(model).get(_NAME), Generate):
        setattr(model, _NAME, Generate(model, state))


def remove_generate(model: PreTrainedModel) -> None:
    """Put the former `generate` back."""
    put_back(model, _NAME, Generate)


def is_plain(config: HSAConfig) -> bool:
    """Whether untyped prompts and what is generated from them are seen as without HSA."""
    if config.rules is not None:
        return False
    kinds = {config.default, config.generated}
    hides = any(query_type in kinds and key_type in kinds for query_type, key_type in config.hide)
    limits = [limit[kind] for limit in (config.windows, config.turns) for kind in kinds]
    return not hides and all(config.decays[kind] == 0 for kind in kinds) and all(limit is None for limit in limits)


def _option(kwargs: dict[str, Any], *configs_and_name: Any) -> Any:
    """Return the value of an option as transformers finds it: a keyword wins, even if it is None."""
    *configs, name = configs_and_name
    if name in kwargs:
        return kwargs[name]
    return next((value for config in configs if (value := getattr(config, name, None)) is not None), None)


def _check_options(model: PreTrainedModel, option: Any, kwargs: dict[str, Any], tagger: Any) -> None:
    for name, reason in _REFUSED.items():
        value = option(name)
        is_off = value is None or value is False or (name == "guidance_scale" and value == 1)
        if not is_off:
            raise ValueError(f"generate() with HSA cannot honour {name}: {reason}.")
    if kwargs.get("use_cache") is False:
        raise ValueError("generate() with HSA needs its cache: leave use_cache=False out.")
    if model.training and is_checkpointing(model):
        raise ValueError(
            "generate() in training mode with gradient checkpointing has no cache, neither with HSA nor without: call "
            "model.eval() before and model.train() after."
        )
    if not getattr(model, "_supports_default_dynamic_cache", lambda: True)():
        raise ValueError(
            f"{type(model).__name__} brings a cache of its own, so an HSACache cannot be used with it: read whole texts by forwards with use_cache=False."
        )
    if tagger is not None and not isinstance(tagger, Tagger):
        raise ValueError(f"tagger must have the methods of hsa_factory.models.cache.tagger.Tagger, got {tagger!r}.")


def _check_prompt(model: PreTrainedModel, input_ids: Any, option: Any) -> None:
    if not isinstance(input_ids, torch.Tensor) or input_ids.dim() != 2:
        shape = tuple(input_ids.shape) if isinstance(input_ids, torch.Tensor) else type(input_ids).__name__
        raise ValueError(f"generate() with HSA needs input_ids of shape (batch, length), got {shape}.")
    if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        raise ValueError(f"generate() with HSA needs input_ids of whole numbers, got {input_ids.dtype}.")
    if not input_ids.numel():
        raise ValueError(f"generate() with HSA got an empty prompt: input_ids has shape {tuple(input_ids.shape)}.")

    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    length, new = input_ids.shape[1], option("max_new_tokens")
    total = length + new if new is not None else max(length, option("max_length") or 0)
    if limit is not None and total > limit:
        raise ValueError(
            f"The prompt has {length} tokens and up to {total - length} more are asked for, but {type(model).__name__} "
            f"has {limit} positions: shorten the prompt or lower max_new_tokens."
        )


def _prepare_cache(cache: Any, config: HSAConfig) -> HSACache:
    if cache is None:
        return HSACache(config)
    if not isinstance(cache, HSACache):
        raise ValueError(
            f"generate() with HSA needs an HSACache, got {type(cache).__name__}: leave {CACHE} out, or pass "
            "hsa_factory.models.HSACache(config)."
        )
    cache.abort()  # a forward that an interrupt left open
    return cache


def _prepare_types(
    semantic_ids: torch.Tensor | None, input_ids: torch.Tensor, cache: HSACache, config: HSAConfig
) -> torch.Tensor:
    """Return the types of all tokens up to the prompt's end, (B, seen + new)."""
    seen = cache.get_seq_length()
    if seen and cache.rows != input_ids.shape[0]:
        raise ValueError(
            f"This HSACache holds {cache.rows} rows, but input_ids has {input_ids.shape[0]}: pass those rows, or a new cache."
        )
    if semantic_ids is None:
        if seen:
            raise ValueError(
                "semantic_ids are missing: going on from an HSACache needs the types of the new tokens (and "
                "cache.semantic_ids holds those of the tokens seen)."
            )
        return torch.full_like(input_ids, int(config.default))
    if not isinstance(semantic_ids, torch.Tensor):
        raise ValueError(f"semantic_ids must be a tensor, got {type(semantic_ids).__name__}.")
    if semantic_ids.shape != input_ids.shape:
        raise ValueError(
            f"semantic_ids has shape {tuple(semantic_ids.shape)}, but input_ids has {tuple(input_ids.shape)}."
        )
    if (
        semantic_ids.is_floating_point()
        or semantic_ids.dtype == torch.bool
        or not bool(((semantic_ids >= 0) & (semantic_ids <= 2)).all())
    ):
        raise ValueError("semantic_ids must hold whole numbers from 0 (GLOBAL) to 2 (NOISE).")
    if seen >= input_ids.shape[1]:
        raise ValueError(
            f"input_ids has {input_ids.shape[1]} tokens, but the cache has seen {seen}: pass the whole conversation, "
            "with at least one new token at its end."
        )
    return semantic_ids.to(input_ids.device)


def _prepare_turns(
    turn_ids: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, config: HSAConfig
) -> torch.Tensor | None:
    """Return the turns of all tokens up to the prompt's end, (B, seen + new), checked; None: they are not needed."""
    if turn_ids is not None:
        check_turn_ids(turn_ids, *input_ids.shape)
    if not config.has_turns:
        return None
    if turn_ids is None:
        raise missing_turns(config.turns)
    return settle_turns(turn_ids.to(input_ids.device), attention_mask != 0)


def _prepare_mask(
    attention_mask: Any, input_ids: torch.Tensor, cache: HSACache, pad_token_id: int | None, end_ids: list[int]
) -> torch.Tensor:
    """Return the mask of all tokens up to the prompt's end, (B, seen + new)."""
    given = attention_mask
    if given is None:  # guess as transformers does: the padding token is padding unless it also ends texts
        is_unknown = pad_token_id is None or pad_token_id in end_ids
        given = torch.ones_like(input_ids) if is_unknown else torch.ne(input_ids, pad_token_id or 0).long()
    if not isinstance(given, torch.Tensor) or given.shape != input_ids.shape:
        found = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise ValueError(f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}, got {found}.")
    if bool((given > 1).any()):
        raise ValueError(
            "A packed row (attention_mask above 1) cannot be cached: generate from its documents on their own."
        )
    seen, given = cache.attention_mask, given.to(input_ids)
    if seen is None:
        return given
    number = seen.shape[1]
    if attention_mask is not None and bool((seen > given[:, :number]).any()):
        raise ValueError(
            "attention_mask takes tokens for padding that this HSACache has seen as text: leave it out, the cache knows what was padding."
        )
    new = given[:, number:].clone()
    if cache.ended_rows is not None:  # the last token of the turn before has not been read
        new[:, 0] *= ~(cache.ended_rows & (input_ids[:, number] == pad_token_id))
    return torch.cat([seen, new], dim=1)


def _token_ids(option: Any) -> list[int]:
    """Return the token ids that an option of `generate` holds."""
    if option is None:
        return []
    return [int(token) for token in (option if isinstance(option, (list, tuple, torch.Tensor)) else [option])]
