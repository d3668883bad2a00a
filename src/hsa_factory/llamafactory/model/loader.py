"""LLaMA-Factory's loading of tokenizer and model: the feedback token, its row, and HSA at the end."""

from functools import partial
from types import ModuleType
from typing import Any

import llamafactory.model.loader
from llamafactory.data.template import Template
from llamafactory.extras import logging

from ...config import HSAConfig
from ...models import enable_hsa
from ...models.enable import get_state
from ..engines import way_to_train_embeddings
from ..saved_files import check_models, lost_tokens
from ..seams import Seam
from ..state import Integration
from .checkpoint import resolve_config
from .feedback_token import fit_embeddings, initialize_rows, table_sizes


logger = logging.get_logger(__name__)


def model_seams(state: Integration) -> list[Seam]:
    """Return what is replaced wherever LLaMA-Factory loads a tokenizer or a model."""
    return [
        Seam(Template, "fix_special_tokens", partial(_fix_special_tokens, state)),
        Seam(llamafactory.model.loader, "patch_model", partial(_patch_model, state)),
    ]


def load_model_seam(module: ModuleType, state: Integration) -> Seam:
    """Return the replacement of `load_model` in a module that loads the model of a run."""
    return Seam(module, "load_model", partial(_load_model, state))


def _fix_special_tokens(state: Integration, original: Any, template: Template, tokenizer: Any) -> None:
    """Add the feedback token behind what the template adds: those keep the ids they have without Feedback."""
    known_tokens = len(tokenizer)
    original(template, tokenizer)
    state.add_feedback_token(tokenizer, known_tokens)


def _patch_model(state: Integration, original: Any, model: Any, tokenizer: Any, model_args: Any, *args: Any) -> None:
    """Give the feedback token its row before adapters are put on the model."""
    if state.feedback_token is None:  # loaded without a template
        state.add_feedback_token(tokenizer, len(tokenizer))
    token = state.feedback_token
    if token is None:
        original(model, tokenizer, model_args, *args)
        return

    former_sizes = table_sizes(model)
    size = max(len(tokenizer), token.token_id + 1)  # a reference model's tokenizer may lack the token
    if not model_args.resize_vocab:
        fit_embeddings(model, size)
    original(model, tokenizer, model_args, *args)
    fit_embeddings(model, size)
    initialize_rows(model, token, former_sizes, first_new=len(tokenizer) if model_args.resize_vocab else 0)


def _load_model(
    state: Integration,
    original: Any,
    tokenizer: Any,
    model_args: Any,
    finetuning_args: Any,
    is_trainable: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Switch HSA on at the end of LLaMA-Factory's own loading."""
    _check_files(model_args)
    _warn_of_lost_tokens(model_args, tokenizer)
    hsa_config = state.resolve(model_args)
    model = original(tokenizer, model_args, finetuning_args, is_trainable, *args, **kwargs)
    _switch_on(model, hsa_config, tokenizer, state.context_group)
    if is_trainable:
        _warn_of_frozen_row(state, finetuning_args)
    return model


def load_reference(
    state: Integration, original: Any, tokenizer: Any, model_args: Any, *args: Any, **kwargs: Any
) -> Any:
    """Load a model that a run compares its own with; it attends by the rules of the run.

    Raises:
        ValueError: If the model was made with other rules than those of the run.
    """
    _check_files(model_args)
    config = state.hsa_config
    own = resolve_config(state.hsa if config is None else config, model_args, None)
    if config is None and own is not None:
        raise ValueError(
            f"The reference model {model_args.model_name_or_path} was made with HSA, and the model that is trained was not, so "
            "that they cannot be compared. Write `hsa: true` to train with HSA, or `hsa: false` to run both without it."
        )
    model = original(tokenizer, model_args, *args, **kwargs)
    _switch_on(model, config, tokenizer)
    return model


def _check_files(model_args: Any) -> None:
    check_models([*(model_args.adapter_name_or_path or ()), model_args.model_name_or_path])


def _warn_of_lost_tokens(model_args: Any, tokenizer: Any) -> None:
    """Say that an adapter's new tokens are not there: where no tables lie beside it, nothing else would."""
    for adapter in model_args.adapter_name_or_path or ():
        lost = lost_tokens(adapter, tokenizer)
        if lost:
            logger.warning_rank0(
                f"{adapter} was trained with tokens that this run lacks: {', '.join(lost[:10])}. What it learnt of them is "
                "lost. Keep what added them in the file, such as the block `feedback`."
            )


def _switch_on(model: Any, config: HSAConfig | None, tokenizer: Any, context_group: Any = None) -> None:
    if config is None:
        return
    enable_hsa(model, config, context_parallel=context_group)
    hsa = get_state(model)
    if hsa is not None:
        hsa.tokenizer = tokenizer


def _warn_of_frozen_row(state: Integration, finetuning_args: Any) -> None:
    token = state.feedback_token
    if token is None or not token.is_new or finetuning_args.finetuning_type == "full":
        return
    if not any("embed" in name for name in finetuning_args.additional_target or []):
        logger.warning_rank0(
            f"{token.token} is new to this model, and {finetuning_args.finetuning_type} does not train its embedding: "
            "it stays at the mean of the others. To train it, set `additional_target: embed_tokens,lm_head` (with "
            f"`finetuning_type: lora`).{way_to_train_embeddings()}"
        )
