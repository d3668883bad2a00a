"""LLaMA-Factory's options against HSA and Feedback: what is overridden, what is refused, before anything is loaded."""

from pathlib import Path
from typing import Any

from llamafactory.extras import logging
from llamafactory.extras.constants import EngineName
from transformers.trainer_utils import get_last_checkpoint

from ..config import CONFIG_NAME, FeedbackConfig, HSAConfig


logger = logging.get_logger(__name__)

SAVED = "saved"
"""In the place of a configuration: the one saved with the checkpoint; no HSA if it has none."""

_REPLACED = {
    "use_unsloth": "it replaces the attention and the training loop",
    "use_kt": "its kernels replace the attention",
}


def check_stage(stage: str) -> None:
    """Refuse a training stage that HSA and Feedback do not know yet.

    Raises:
        ValueError: Always; `stage` is the one to name.
    """
    raise ValueError(
        f"HSA and Feedback support `stage: sft`, not `stage: {stage}` yet. Remove the hsa and feedback blocks to run "
        "it with plain LLaMA-Factory."
    )


def check_options(
    model_args: Any,
    data_args: Any,
    training_args: Any,
    finetuning_args: Any,
    hsa_config: HSAConfig | None,
    feedback_config: FeedbackConfig | None,
) -> None:
    """Refuse options that cannot be honoured and override those that only name another attention kernel.

    Raises:
        ValueError: Naming the option and what to do.
    """
    refused = dict(_REPLACED)
    if hsa_config is not None:
        refused |= {
            "shift_attn": "it replaces the attention (LongLoRA)",
            "mixture_of_depths": "it lets tokens skip layers",
            "use_hyper_parallel": "it has a training loop of its own",
            "use_mca": "it has a model of its own (Megatron)",
            "use_asft_loss": "its reference model would run without HSA",
        }
    _refuse(refused, model_args, finetuning_args, training_args)
    if data_args.streaming and training_args.dataloader_num_workers < 1:
        logger.warning_rank0("`streaming` needs a data loading worker; `dataloader_num_workers` is set to 1.")
        training_args.dataloader_num_workers = 1
    if hsa_config is None:
        return

    flash_attn = getattr(model_args.flash_attn, "value", model_args.flash_attn)
    if flash_attn not in ("auto", "sdpa"):
        logger.warning_rank0(
            f"`flash_attn: {flash_attn}` is overridden: HSA brings its own attention to the text model."
        )
        model_args.flash_attn = "sdpa"
    if data_args.packing and not data_args.neat_packing:
        logger.warning_rank0(
            "`packing` without `neat_packing`: as in plain LLaMA-Factory, samples packed into one row see each other. "
            "Set `neat_packing: true` to keep them apart."
        )


def _refuse(options: dict[str, str], *arguments: Any) -> None:
    for option, reason in options.items():
        if any(getattr(args, option, None) for args in arguments):
            raise ValueError(f"`{option}` cannot be combined with HSA / Feedback: {reason}. Remove it.")


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
            f"`infer_backend: {EngineName.HF.value}`, or `hsa: false` in a YAML to run it without HSA."
        )
    if finetuning_args.stage != "sft":
        check_stage(finetuning_args.stage)
    _refuse(_REPLACED, model_args, finetuning_args)


def resolve_config(hsa: HSAConfig | bool | str, model_args: Any, training_args: Any) -> HSAConfig | None:
    """Settle the configuration of a run together with the ones saved beside the checkpoints it starts from.

    Args:
        hsa: The rules asked for; True takes over those of the checkpoint, or the defaults; `SAVED` only those of the
            checkpoint.
        model_args: LLaMA-Factory's.
        training_args: LLaMA-Factory's; None outside training.

    Returns:
        The configuration; None for `SAVED` and a checkpoint without HSA.

    Raises:
        ValueError: If a checkpoint was made with other rules than the ones asked for.
    """
    asked = hsa if isinstance(hsa, HSAConfig) else None
    resumed = training_args.resume_from_checkpoint if training_args is not None else None
    if resumed in (True, "true", "True"):
        output_dir = training_args.output_dir
        resumed = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    places = [resumed, *(model_args.adapter_name_or_path or ()), model_args.model_name_or_path]
    for place in places:
        if not isinstance(place, str) or not (Path(place) / CONFIG_NAME).is_file():
            if place == resumed and isinstance(place, str) and Path(place).is_dir():
                raise ValueError(
                    f"The checkpoint {place!r} to resume from was made without HSA ({CONFIG_NAME} is missing). Resume "
                    "it without the hsa block, or start a new run with `overwrite_output_dir: true`."
                )
            continue

        saved = HSAConfig.from_pretrained(place)
        if asked is None:
            logger.info_rank0(f"HSA configuration taken over from {place}.")
            asked = saved
        elif saved.attention_rules() != asked.attention_rules():
            there, here = saved.to_dict(), asked.to_dict()
            rules = [name for name in here if name.endswith(("_decay", "_window")) or name in ("hide", "layers")]
            changed = [
                f"{name}: {there[name]!r} there, {here[name]!r} here" for name in rules if there[name] != here[name]
            ]
            way_out = (
                "start a new run with `overwrite_output_dir: true` or another `output_dir`"
                if place == resumed
                else f"remove its {CONFIG_NAME} to go on with other rules"
            )
            raise ValueError(
                f"{place!r} was made with another HSA configuration than the one asked for ({'; '.join(changed)}). Use "
                f"`hsa: true` to take over the checkpoint's, or {way_out}."
            )

    return asked if asked is not None or hsa == SAVED else HSAConfig()
