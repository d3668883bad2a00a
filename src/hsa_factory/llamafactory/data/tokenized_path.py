"""Data that an earlier run tokenized (`tokenized_path`): whether they are what this run would make."""

from pathlib import Path
from typing import Any

from ...config import FeedbackConfig, HSAConfig
from .report import REPORT_NAME, DataReport
from .token_table import LOSS_MASK_COLUMN, SEMANTIC_COLUMN


def run_settings(hsa_config: HSAConfig | None, feedback_config: FeedbackConfig | None) -> dict[str, Any]:
    """Return what a saved report says of the run that made the data."""
    return {
        "hsa": hsa_config.to_dict() if hsa_config else None,
        "feedback": feedback_config.to_dict() if feedback_config else None,
    }


def check_tokenized(
    module: dict[str, Any], tokenized_path: str, hsa_config: HSAConfig | None, feedback_config: FeedbackConfig | None
) -> DataReport:
    """Refuse data that were tokenized without the columns or with other rules of this run.

    Args:
        module: LLaMA-Factory's data sets by split.
        tokenized_path: Where they come from.
        hsa_config: The run's; None: no HSA.
        feedback_config: The run's; None: no Feedback.

    Returns:
        The report that was saved with them; an empty one if there is none.

    Raises:
        ValueError: Saying what differs, and what to do.
    """
    for split in ("train_dataset", "eval_dataset"):
        data = module.get(split)
        for part in data.values() if isinstance(data, dict) else [data] if data is not None else []:
            for column, wanted in ((SEMANTIC_COLUMN, hsa_config), (LOSS_MASK_COLUMN, feedback_config)):
                if wanted is not None and part.column_names is not None and column not in part.column_names:
                    raise ValueError(
                        f"tokenized_path {tokenized_path!r} has no column {column!r}: it was made without "
                        f"{'HSA' if wanted is hsa_config else 'Feedback'}. Remove it to tokenize again."
                    )

    path = Path(tokenized_path) / REPORT_NAME
    if not path.is_file():
        if feedback_config is not None:
            raise ValueError(
                f"tokenized_path {tokenized_path!r} has no {REPORT_NAME}, which says what feedback it was made with. "
                "Remove it to tokenize again."
            )
        return DataReport()

    values = DataReport.load_values(path)
    made_with = values.get("feedback")
    if (FeedbackConfig.from_dict(made_with) if made_with else None) != feedback_config:
        wanted = run_settings(None, feedback_config)["feedback"]
        raise ValueError(
            f"tokenized_path {tokenized_path!r} was made with feedback {made_with}, this run asks for {wanted}. "
            "Remove it to tokenize again."
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
    report = DataReport.from_dict(values)
    if hsa_config is None or typed_with.attention_rules() != hsa_config.attention_rules():
        report.forget_sight()
    return report
