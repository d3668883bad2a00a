"""Data that an earlier run tokenized (`tokenized_path`): whether they are whole, and what this run would make."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...config import FeedbackConfig, HSAConfig
from ...loss_weights import LossWeightsConfig
from .report import REPORT_NAME, DataReport
from .token_table import LOSS_MASK_COLUMN, SEMANTIC_COLUMN, TURN_COLUMN
from .turns import has_turns


_DATA_OPTIONS = (
    *("eval_dataset", "max_samples", "val_size", "mix_strategy", "interleave_probs", "eval_on_each_dataset"),
    *("cutoff_len", "packing", "neat_packing", "train_on_prompt", "mask_history"),
    *("template", "tool_format", "default_system", "enable_thinking", "preserve_thinking"),
)
_MEDIA_OPTIONS = ("image_", "video_", "audio_", "crop_to_patches")  # how names of the model's options begin
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def run_settings(
    hsa_config: HSAConfig | None, feedback_config: FeedbackConfig | None, loss_weights: LossWeightsConfig
) -> dict[str, Any]:
    """Return what a saved report says of the run that made the data."""
    return {
        "hsa": hsa_config.to_dict() if hsa_config else None,
        "feedback": feedback_config.to_dict() if feedback_config else None,
        "loss_weights": loss_weights.to_dict(),
    }


def data_options(model_args: Any, data_args: Any, tokenizer: Any, stage: str) -> dict[str, Any]:
    """Return all else that decides what the data become, as plain values: options, and the tokenizer's vocabulary.

    Args:
        model_args: LLaMA-Factory's.
        data_args: LLaMA-Factory's.
        tokenizer: The run's.
        stage: The run's.
    """
    options = {"stage": stage}
    options |= {name: getattr(data_args, name) for name in _DATA_OPTIONS}
    options |= {name: value for name, value in vars(model_args).items() if name.startswith(_MEDIA_OPTIONS)}
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    options["tokenizer"] = f"{len(tokenizer)} tokens, {hashlib.sha256(vocabulary).hexdigest()[:12]}"
    return json.loads(json.dumps(options))


def check_arrow_files(tokenized_path: str | None) -> None:
    """Refuse tokenized data of which a file is not whole.

    Args:
        tokenized_path: Of the run; what is not there is made by it.

    Raises:
        ValueError: Naming the file, and what to do.
    """
    for path in sorted(Path(tokenized_path).rglob("*")) if tokenized_path else ():
        try:
            if path.suffix == ".arrow":
                with pa.memory_map(str(path)) as file:
                    pa.ipc.open_stream(file).read_all()
                    file.seek(max(file.size() - len(_END_OF_STREAM), 0))
                    if file.read() != _END_OF_STREAM:
                        raise ValueError("its end is missing")
            elif path.name in ("dataset_dict.json", "state.json", "dataset_info.json"):
                json.loads(path.read_text(encoding="utf-8"))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(
                f"tokenized_path {str(tokenized_path)!r}: {path} is not whole: {error}. Remove the directory to tokenize "
                "again."
            ) from None


def check_tokenized(
    module: dict[str, Any],
    tokenized_path: str,
    settings: dict[str, Any],
    hsa_config: HSAConfig | None,
    feedback_config: FeedbackConfig | None,
    options: dict[str, Any],
) -> DataReport:
    """Refuse data that were tokenized without the columns, with other rules or with other options of this run.

    Args:
        module: LLaMA-Factory's data sets by split.
        tokenized_path: Where they come from.
        settings: The run's `run_settings`.
        hsa_config: The run's; None: no HSA.
        feedback_config: The run's; None: no Feedback.
        options: The run's `data_options`.

    Returns:
        The report that was saved with them; an empty one if there is none.

    Raises:
        ValueError: Saying what differs, and what to do.
    """
    for split in ("train_dataset", "eval_dataset"):
        data = module.get(split)
        for part in data.values() if isinstance(data, dict) else [data] if data is not None else []:
            for column, is_needed, option in (
                (SEMANTIC_COLUMN, hsa_config is not None, "HSA"),
                (TURN_COLUMN, has_turns(hsa_config), "a rule with turns (such as noise_turns)"),
                (LOSS_MASK_COLUMN, feedback_config is not None, "Feedback"),
            ):
                if is_needed and part.column_names is not None and not _has_column(part.column_names, column):
                    raise ValueError(
                        f"tokenized_path {tokenized_path!r} has no column {column!r}: it was made without {option}. "
                        "Remove it to tokenize again."
                    )

    path = Path(tokenized_path) / REPORT_NAME
    if not path.is_file():
        if feedback_config is not None:
            raise ValueError(
                f"tokenized_path {tokenized_path!r} has no {REPORT_NAME}, which says what feedback it was made with. "
                "Remove it to tokenize again."
            )
        _check_eval_data(module, tokenized_path, options)
        return DataReport()

    values = DataReport.load_values(path)
    made_with = values.get("feedback")
    if (FeedbackConfig.from_dict(made_with) if made_with else None) != feedback_config:
        wanted = settings["feedback"]
        raise ValueError(
            f"tokenized_path {tokenized_path!r} was made with feedback {made_with}, this run asks for {wanted}. "
            "Remove it to tokenize again."
        )
    weighed_with = values.get("loss_weights")
    if weighed_with is not None and weighed_with != settings["loss_weights"]:  # None: of an earlier version
        raise ValueError(
            f"tokenized_path {tokenized_path!r} was made with loss_weights {weighed_with}, this run asks for "
            f"{settings['loss_weights']}. Remove it to tokenize again."
        )
    typed_with = HSAConfig.from_dict(values.get("hsa") or {})
    if hsa_config is not None:
        same = {
            "default_type": typed_with.default == hsa_config.default,
            "rules": typed_with.rules == hsa_config.rules,
        }
        for name, is_same in same.items():
            if not is_same:
                there, here = typed_with.to_dict()[name], hsa_config.to_dict()[name]
                raise ValueError(
                    f"tokenized_path {tokenized_path!r} was made with hsa.{name} {there!r}, this run asks for "
                    f"{here!r}. Remove it to tokenize again."
                )
    _check_options(values, module, tokenized_path, options)
    report = DataReport.from_dict(values)
    if hsa_config is None or typed_with.attention_rules() != hsa_config.attention_rules():
        report.forget_sight()
    return report


def _has_column(names: Sequence[str], column: str) -> bool:
    """Whether a sequence of a row has a column; in pairs each has one of its own (``chosen_semantic_ids``)."""
    return any(name == column or name.endswith(f"_{column}") for name in names)


def _check_options(
    values: dict[str, Any], module: dict[str, Any], tokenized_path: str, options: dict[str, Any]
) -> None:
    """Refuse options that the data were not made with: LLaMA-Factory would ignore them.

    Raises:
        ValueError: Naming each, and what to do.
    """
    made_with = values.get("data_options")
    if made_with is None:  # of an earlier version
        _check_eval_data(module, tokenized_path, options)
        return
    changed = [
        f"{name} {made_with[name]!r}, this run asks for {value!r}"
        for name, value in options.items()
        if name in made_with and made_with[name] != value
    ]
    if changed:
        raise ValueError(
            f"tokenized_path {tokenized_path!r} was made with {'; with '.join(changed)}. Remove it to tokenize again, or "
            "go back to those values."
        )


def _check_eval_data(module: dict[str, Any], tokenized_path: str, options: dict[str, Any]) -> None:
    """Refuse to evaluate on data that were not set apart when they were tokenized.

    Raises:
        ValueError: Naming the option, and what to do.
    """
    for name in ("val_size", "eval_dataset"):
        if options[name] and module.get("eval_dataset") is None:
            raise ValueError(
                f"tokenized_path {tokenized_path!r} holds no data to evaluate on: {name} {options[name]!r} would be "
                "ignored. Remove it to tokenize again."
            )
