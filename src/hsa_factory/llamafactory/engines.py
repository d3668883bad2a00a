"""Engines that share a run out between processes: what is known to go wrong in them, said before anything is loaded."""

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from llamafactory.extras import logging
from llamafactory.model.loader import load_config
from packaging.version import Version
from transformers.integrations import is_deepspeed_zero3_enabled


logger = logging.get_logger(__name__)

_LAST_WITH_SAVED_MODULES = Version("0.16.4")
_WITH_MODULES = ("lora", "oft")
_WRONG_UNDER_ZERO3 = ("qwen2_5_vl",)
WAY_OUT = "Use ZeRO-2 (a DeepSpeed configuration with `stage: 2`), or pip install deepspeed==0.16.4"


def check_engine(model_args: Any, training_args: Any, finetuning_args: Any) -> None:
    """Refuse what an engine is known to crash on, and warn of what it is known to compute wrong.

    Args:
        model_args: LLaMA-Factory's.
        training_args: LLaMA-Factory's.
        finetuning_args: LLaMA-Factory's.

    Raises:
        ValueError: Naming the option, the engine and the ways out.
    """
    if finetuning_args.stage == "rm" and finetuning_args.finetuning_type in _WITH_MODULES and _is_fsdp2():
        raise ValueError(
            "`stage: rm` with an adapter does not go with FSDP2: accelerate and LLaMA-Factory do not know the parts of the value head, "
            "and stop at the start or when the model is saved. Use ZeRO-3 or DDP."
        )
    if zero_stage(training_args) != 3:
        return
    if training_args.use_cpu:
        raise ValueError(
            "`use_cpu: true` does not go with ZeRO-3: accelerate stops at it. Remove it; on a machine without a GPU, set the "
            "environment variable DS_ACCELERATOR=cpu and `ddp_backend: gloo`."
        )
    is_adapter = finetuning_args.finetuning_type in _WITH_MODULES
    saved = finetuning_args.additional_target or model_args.resize_vocab
    if is_adapter and saved and not zero3_trains_saved_modules():
        option = "additional_target" if finetuning_args.additional_target else "resize_vocab"
        raise ValueError(
            f"`{option}` with `finetuning_type: {finetuning_args.finetuning_type}` and ZeRO-3 stops at the first step in DeepSpeed "
            f"{_deepspeed_version()} ('ds_grads_remaining'), in plain LLaMA-Factory too. {WAY_OUT}."
        )
    if is_adapter and _model_type(model_args) in _WRONG_UNDER_ZERO3:
        logger.warning_rank0(
            f"{_model_type(model_args)} with `finetuning_type: {finetuning_args.finetuning_type}` and ZeRO-3: without a GPU the "
            "losses were wrong, in plain LLaMA-Factory too, and nobody has tried it on one. Use ZeRO-2, or compare the first "
            "losses with those of ZeRO-2."
        )


def deepspeed_config(training_args: Any) -> Mapping[str, Any] | None:
    """Return the DeepSpeed configuration of a run; None: it has none.

    Args:
        training_args: transformers': their `deepspeed` was read from a file or a mapping, or `accelerate launch` has made it.
    """
    plugin = getattr(training_args, "deepspeed_plugin", None)
    for read in (getattr(training_args, "hf_deepspeed_config", None), getattr(plugin, "hf_ds_config", None)):
        config = getattr(read, "config", None)
        if config is not None:
            return config
    return None


def zero_stage(training_args: Any) -> int | None:
    """Return the stage of ZeRO that a run is shared out by; None: it is none of DeepSpeed."""
    config = deepspeed_config(training_args)
    stage = ((config or {}).get("zero_optimization") or {}).get("stage", 0)
    return None if config is None else int(stage)


def zero3_trains_saved_modules() -> bool:
    """Return whether adapters may be trained with whole modules beside them (`additional_target`), if ZeRO-3 is on."""
    installed = _deepspeed_version()
    return installed is None or Version(installed) <= _LAST_WITH_SAVED_MODULES


def way_to_train_embeddings() -> str:
    """Return what must change besides `additional_target` for a run to train embeddings; empty: nothing."""
    return f" {WAY_OUT}." if is_deepspeed_zero3_enabled() and not zero3_trains_saved_modules() else ""


def _is_fsdp2() -> bool:
    """Whether `accelerate launch` has told this process to run FSDP2."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1") and os.environ.get("FSDP_VERSION") == "2"


def _deepspeed_version() -> str | None:
    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return None


def _model_type(model_args: Any) -> str:
    """Return the type of the model; empty where its configuration cannot be read, as its loading will say."""
    try:
        return load_config(model_args).model_type
    except (OSError, ValueError):
        return ""
