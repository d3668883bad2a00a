"""LLaMA-Factory's options against HSA and Feedback: what is overridden, what is refused, before anything is loaded."""

from collections.abc import Mapping
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

from llamafactory.extras import logging
from llamafactory.extras.constants import EngineName
from llamafactory.extras.misc import is_env_enabled

from ..config import HSAConfig
from ..hosts import OTHER_TRAINER_VARIABLES
from ..models.parallelism import check_parallelism
from ..training.weighted_loss import find_other_loss as find_other_loss_of_arguments
from .engines import check_engine, deepspeed_config
from .flash_attention import check_flash_attention
from .model.checkpoint import resolve_config
from .train.stages import STAGES


logger = logging.get_logger(__name__)

SUPPORTED_STAGES = tuple(STAGES)
_PACKED_STAGES = ("sft", "pt")

_OTHER_TRAINERS = {
    "use_hyper_parallel": "it has a training loop of its own, with LLaMA-Factory's own collator",
    "use_mca": "it has a model and a training loop of its own (Megatron)",
    "use_megatron_bridge": "it has a model and a training loop of its own (Megatron)",
}
"""They train beside LLaMA-Factory's standard trainer: types, masked labels and the new token's row would all be lost."""

_REPLACED = {
    "use_unsloth": "it replaces the attention and the training loop",
    "use_kt": "it trains with KTransformers' own kernels, in builds of transformers and accelerate of its own",
}

_REPLACED_ATTENTION = {
    "shift_attn": "it replaces the attention (LongLoRA)",
    "mixture_of_depths": "it lets tokens skip layers",
    "use_asft_loss": "its reference model would run without HSA",
}
"""What is lost is HSA: labels stay masked, so that Feedback alone may go with them."""

_OTHER_LOSSES = {
    "enable_liger_kernel": "its fused kernel computes the loss without the logits of each token",
    "use_dft_loss": "it weighs tokens itself, by their probability",
    "use_asft_loss": "it weighs tokens itself, by their probability",
    "use_eaft_loss": "it weighs tokens itself, by their entropy",
    "moe_aux_loss_coef": "the model adds the loss of its router to a loss of its own",
}
"""What messages with a weight other than 0 and 1 cannot go with: their loss is computed from the logits of each token."""


def check_stage(stage: str) -> None:
    """Refuse a training stage that HSA and Feedback do not know yet.

    Raises:
        ValueError: Naming the stage and what to do.
    """
    if stage == "ppo":
        raise ValueError(
            "`stage: ppo` does not start in this LLaMA-Factory, with HSA and Feedback or without: its trainer stops at "
            f"`trl>=0.8.6,<=0.9.6 is required`, and LLaMA-Factory itself needs a later trl (installed: {version('trl')}). Learn "
            "from preferences with `stage: dpo` or `stage: kto`."
        )
    if stage not in SUPPORTED_STAGES:
        raise ValueError(
            f"HSA and Feedback support {' and '.join(f'`stage: {name}`' for name in SUPPORTED_STAGES)}, not `stage: {stage}` yet. "
            "Remove the hsa and feedback blocks to run it with plain LLaMA-Factory; on a model that was trained with HSA also "
            "write `hsa: false`."
        )


def check_trainer(args: Any) -> None:
    """Refuse options and environment variables that let LLaMA-Factory train with something else than its own trainer.

    Args:
        args: As LLaMA-Factory's `get_train_args` takes them. Of a mapping the options are checked as they were asked
            for: LLaMA-Factory overwrites `use_mca` by the environment.

    Raises:
        ValueError: Naming the option or the variable, and what to do.
    """
    for variable, reason in OTHER_TRAINER_VARIABLES.items():
        if is_env_enabled(variable):
            raise ValueError(
                f"{variable} is set: HSA and Feedback work with LLaMA-Factory's standard trainer only. {reason}. Unset it, or "
                "remove the hsa and feedback blocks; on a model that was trained with HSA also write `hsa: false`."
            )
    if isinstance(args, Mapping):
        _refuse(_OTHER_TRAINERS, SimpleNamespace(**args))


def check_options(
    model_args: Any,
    data_args: Any,
    training_args: Any,
    finetuning_args: Any,
    hsa_config: HSAConfig | None,
) -> None:
    """Refuse options that cannot be honoured and override those that only name another attention kernel.

    Args:
        model_args: LLaMA-Factory's, as the next three; changed in place.
        data_args: LLaMA-Factory's.
        training_args: LLaMA-Factory's.
        finetuning_args: LLaMA-Factory's.
        hsa_config: The rules of the run; None: Feedback alone.

    Raises:
        ValueError: Naming the option and what to do.
    """
    refused = _OTHER_TRAINERS | _REPLACED
    if hsa_config is not None:
        refused |= _REPLACED_ATTENTION
    _refuse(refused, model_args, finetuning_args, training_args)
    if data_args.streaming and training_args.dataloader_num_workers < 1:
        logger.warning_rank0("`streaming` needs a data loading worker; `dataloader_num_workers` is set to 1.")
        training_args.dataloader_num_workers = 1
    check_engine(model_args, training_args, finetuning_args)
    if hsa_config is None:
        check_flash_attention(model_args)
        return

    check_parallelism(
        parallelism_config=training_args.parallelism_config,
        deepspeed_config=deepspeed_config(training_args),
    )
    flash_attn = getattr(model_args.flash_attn, "value", model_args.flash_attn)
    if flash_attn not in ("auto", "sdpa"):
        logger.warning_rank0(
            f"`flash_attn: {flash_attn}` is overridden: HSA brings its own attention to the text model."
        )
        model_args.flash_attn = "sdpa"
    if finetuning_args.stage not in _PACKED_STAGES:
        if data_args.packing:
            logger.warning_rank0(
                f"`packing` means nothing in `stage: {finetuning_args.stage}`: its rows are not packed."
            )
    elif data_args.packing and not data_args.neat_packing:
        instead = "packing: false" if finetuning_args.stage == "pt" else "neat_packing: true"
        logger.warning_rank0(
            "`packing` without `neat_packing`: as in plain LLaMA-Factory, samples packed into one row see each other. "
            f"Set `{instead}` to keep them apart."
        )


def find_other_loss(model_args: Any, training_args: Any, finetuning_args: Any) -> str:
    """Return why a run's loss cannot be weighed by message, naming the option; empty: it can."""
    for option, reason in _OTHER_LOSSES.items():
        if any(getattr(args, option, None) for args in (model_args, finetuning_args)):
            return f"`{option}` cannot be combined with them: {reason}."
    return find_other_loss_of_arguments(training_args)


def check_serving(hsa: HSAConfig | bool | str, model_args: Any, finetuning_args: Any) -> None:
    """Refuse to chat with a model that has HSA by an engine that does not know HSA.

    Args:
        hsa: As for `resolve_config`.
        model_args: LLaMA-Factory's.
        finetuning_args: LLaMA-Factory's.

    Raises:
        ValueError: Naming the option and what to do.
    """
    if resolve_config(hsa, model_args, None) is None:
        return

    backend = getattr(model_args.infer_backend, "value", model_args.infer_backend)
    if backend != EngineName.HF.value:
        raise ValueError(
            f"`infer_backend: {backend}` cannot run a model with HSA: it has attention kernels and a cache of its own, "
            "in which every key stays visible, so that its answers would be those of another model. Use "
            f"`infer_backend: {EngineName.HF.value}`, `hsa-factory serve` for vLLM with HSA, or `hsa: false` in a YAML to run it "
            "without HSA."
        )
    check_stage(finetuning_args.stage)
    _refuse(_REPLACED | {"mixture_of_depths": _REPLACED_ATTENTION["mixture_of_depths"]}, model_args, finetuning_args)


def _refuse(options: Mapping[str, str], *arguments: Any) -> None:
    for option, reason in options.items():
        if any(getattr(args, option, None) for args in arguments):
            raise ValueError(f"`{option}` cannot be combined with HSA / Feedback: {reason}. Remove it.")
