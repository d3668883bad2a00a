"""The rules that a run goes by: those asked for, settled with the ones saved beside the checkpoints."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llamafactory.extras import logging
from transformers.trainer_utils import get_last_checkpoint

from ...config import CONFIG_NAME, HSAConfig
from ...models.model_card import mentions_hsa
from ...training_file import SAVED
from .hub import local_places


logger = logging.get_logger(__name__)

_MODEL_OPTIONS = ("model_name_or_path", "ref_model", "reward_model")
_ADAPTER_OPTIONS = ("adapter_name_or_path", "ref_model_adapters", "reward_model_adapters")


def starting_points(args: Mapping[str, Any]) -> list[str]:
    """Return the local directories of checkpoints, adapters and models that a run starts from, downloaded ones too.

    Args:
        args: LLaMA-Factory's arguments, as they stand in a file.
    """
    adapters = [path.strip() for option in _ADAPTER_OPTIONS for path in str(args.get(option) or "").split(",")]
    models = [str(args.get(option) or "") for option in _MODEL_OPTIONS]
    hub = [args.get(option) for option in ("model_revision", "cache_dir", "hf_hub_token")]
    return local_places([resumed_checkpoint(args) or "", *adapters, *models], *hub)


def resumed_checkpoint(args: Mapping[str, Any]) -> str | None:
    """Return the checkpoint that a training run goes on from; None if it starts afresh.

    Args:
        args: As for `starting_points`.
    """
    asked = args.get("resume_from_checkpoint")
    if asked is None and args.get("do_train") and not args.get("overwrite_output_dir"):
        asked = True  # LLaMA-Factory goes on from what it finds
    return _checkpoint_of(asked, args.get("output_dir") or "trainer_output")


def has_saved_rules(places: Iterable[str]) -> bool:
    """Return whether one of some directories was saved with HSA; rules that are lost are warned of."""
    places = list(places)
    if any(_has_rules(place) for place in places):
        return True
    _warn_of_lost_rules(places, "it runs without HSA")
    return False


def resolve_config(hsa: HSAConfig | bool | str | None, model_args: Any, training_args: Any) -> HSAConfig | None:
    """Settle the configuration of a run together with the ones saved beside the checkpoints it starts from.

    Args:
        hsa: The rules asked for; True takes over those of the checkpoint, or the defaults; `SAVED` only those of the
            checkpoint. False: no HSA; None: neither, but a checkpoint with HSA is warned of.
        model_args: LLaMA-Factory's.
        training_args: LLaMA-Factory's; None outside training.

    Returns:
        The configuration; None: no HSA.

    Raises:
        ValueError: If a checkpoint was made with other rules than the ones asked for, or than another checkpoint.
    """
    if hsa is False:
        return None
    resumed = None
    if training_args is not None:
        resumed = _checkpoint_of(training_args.resume_from_checkpoint, training_args.output_dir)
    places = [resumed, *(model_args.adapter_name_or_path or ()), model_args.model_name_or_path]
    hub = [getattr(model_args, option, None) for option in ("model_revision", "cache_dir", "hf_hub_token")]
    places = local_places([place for place in places if isinstance(place, str)], *hub)
    made_with = [place for place in places if _has_rules(place)]
    if hsa is None:
        if made_with:
            logger.warning_rank0(
                f'{made_with[0]} was made with HSA, and this run has none. Ask for its rules (`hsa="saved"`), or for '
                "none (`hsa=False`)."
            )
        return None
    if resumed is not None and Path(resumed).is_dir() and resumed not in made_with:
        _check_resumed_without(resumed, hsa, made_with)

    config = hsa if isinstance(hsa, HSAConfig) else None
    source: str | None = None
    for place in made_with:
        saved = HSAConfig.from_pretrained(place)
        if config is None:
            way_out = " `hsa: false` runs it without HSA." if hsa == SAVED else ""
            logger.info_rank0(f"HSA configuration taken over from {place}.{way_out}")
            config, source = saved, place
        elif saved.attention_rules() != config.attention_rules():
            raise ValueError(_disagreement(place, saved, source, config, is_resumed=place == resumed))
    if config is None:
        _warn_of_lost_rules(places, "the defaults are used" if hsa is True else "it runs without HSA")
    return HSAConfig() if config is None and hsa is True else config


def _checkpoint_of(resume: Any, output_dir: str) -> str | None:
    """Return the directory that LLaMA-Factory's `resume_from_checkpoint` stands for; None if there is none."""
    if resume in (True, "true", "True"):
        return get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    return resume or None


def _has_rules(place: str) -> bool:
    return (Path(place) / CONFIG_NAME).is_file()


def _warn_of_lost_rules(places: Iterable[str], consequence: str) -> None:
    for place in places:
        if mentions_hsa(place):
            logger.warning_rank0(
                f"The config.json of {place} says that it was trained with HSA, but the rules are not there: "
                f"{CONFIG_NAME} is missing, and {consequence}. Copy the file from where the model was trained, or write "
                "the rules into the hsa block."
            )


def _check_resumed_without(resumed: str, hsa: HSAConfig | bool | str, made_with: list[str]) -> None:
    """Refuse to switch HSA on in the middle of a run.

    Raises:
        ValueError: Saying what to do.
    """
    if hsa != SAVED:
        way_out = "Resume it without the hsa block"
    elif made_with:
        way_out = f"{made_with[0]!r} was made with HSA: resume the run with `hsa: false`"
    else:
        return
    raise ValueError(
        f"The checkpoint {resumed!r} to resume from was made without HSA ({CONFIG_NAME} is missing). {way_out}, or start "
        "a new run with `overwrite_output_dir: true`."
    )


def _disagreement(place: str, saved: HSAConfig, source: str | None, config: HSAConfig, is_resumed: bool) -> str:
    """Say in what the rules saved in one place differ from those asked for, or from those of another place."""
    there, here = saved.attention_options(), config.attention_options()
    changed = "; ".join(
        f"{name}: {there[name]!r} there, {here[name]!r} here" for name in here if there[name] != here[name]
    )
    if source is not None:
        return (
            f"{place!r} was made with another HSA configuration than {source!r}, whose rules this run takes over "
            f"({changed}). They do not belong together; to use them together all the same, remove the {CONFIG_NAME} of "
            "one."
        )
    way_out = (
        "start a new run with `overwrite_output_dir: true` or another `output_dir`"
        if is_resumed
        else f"remove its {CONFIG_NAME} to go on with other rules"
    )
    return (
        f"{place!r} was made with another HSA configuration than the one asked for ({changed}). Use `hsa: true` to take "
        f"over the checkpoint's, or {way_out}."
    )
