"""The rules that a run goes by: those asked for, settled with the ones saved beside the checkpoints."""

from pathlib import Path
from typing import Any

from llamafactory.extras import logging
from transformers.trainer_utils import get_last_checkpoint

from ...config import CONFIG_NAME, HSAConfig


logger = logging.get_logger(__name__)

SAVED = "saved"
"""In the place of a configuration: the one saved with the checkpoint; no HSA if it has none."""


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
            limits = ("_decay", "_window", "_turns")
            rules = [name for name in here if name.endswith(limits) or name in ("hide", "layers")]
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
