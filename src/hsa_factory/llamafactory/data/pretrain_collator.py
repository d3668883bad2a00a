"""transformers' collator of raw text (stage `pt`), plus padded `semantic_ids` and labels that feedback masks."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling

from ...config import FeedbackConfig, HSAConfig
from ...feedback import IGNORE_INDEX
from ...semantics import SemanticType
from .token_table import LOSS_MASK_COLUMN, ROW_SAMPLES_COLUMN, ROW_SOURCE_COLUMN, SEMANTIC_COLUMN


@dataclass
class HSAPretrainCollator(DataCollatorForLanguageModeling):
    """Pads rows as transformers does; every token is a label but padding and what feedback masks.

    Features hold `input_ids`, `attention_mask` and, as the processor writes them, `semantic_ids` and `loss_mask`.

    Args:
        hsa_config: None: no `semantic_ids` are made.
        feedback_config: None: `loss_mask` is not looked at.

    Raises:
        ValueError: If a feature lacks `semantic_ids` with HSA or `loss_mask` with Feedback, or no label of a batch is left.
    """

    hsa_config: HSAConfig | None = None
    feedback_config: FeedbackConfig | None = None

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> dict[str, torch.Tensor]:
        """Make a batch."""
        features = [dict(feature) for feature in features]
        for feature in features:
            for column in (ROW_SOURCE_COLUMN, ROW_SAMPLES_COLUMN):
                feature.pop(column, None)
        kinds = _take(features, SEMANTIC_COLUMN, "HSA" if self.hsa_config is not None else "")
        masks = _take(features, LOSS_MASK_COLUMN, "Feedback" if self.feedback_config is not None else "")
        batch: dict[str, torch.Tensor] = super().__call__(features, return_tensors)
        if self.hsa_config is not None:
            batch[SEMANTIC_COLUMN] = self._pad(kinds, batch["input_ids"], int(SemanticType.NOISE))
        if self.feedback_config is not None:
            batch["labels"][self._pad(masks, batch["input_ids"], 0) == 0] = IGNORE_INDEX
            if (batch["labels"][:, 1:] == IGNORE_INDEX).all():
                raise ValueError(
                    "No token of this batch is left to train: feedback masks all of it. Its loss would be NaN. Prepare the "
                    "data through the integration, which leaves such rows out."
                )
        return batch

    def _pad(self, rows: list[Any], input_ids: torch.Tensor, value: int) -> torch.Tensor:
        """Pad on the tokenizer's side, (B, L) as the ids."""
        padded = torch.full_like(input_ids, value)
        for i, row in enumerate(rows):
            at = slice(len(row)) if self.tokenizer.padding_side == "right" else slice(padded.shape[1] - len(row), None)
            padded[i, at] = torch.as_tensor(row)
        return padded


def _take(features: list[dict[str, Any]], column: str, needed_by: str) -> list[Any]:
    """Take a column out of the features.

    Args:
        features: Changed in place.
        column: Its name.
        needed_by: What needs it; empty: nothing does.
    """
    rows = [feature.pop(column, None) for feature in features]
    for row, feature in zip(rows, features) if needed_by else ():
        if row is None:
            raise ValueError(
                f"A text has no `{column}`. Data that were tokenized without {needed_by} must be tokenized again with it."
            )
        if len(row) != len(feature["input_ids"]):
            raise ValueError(f"{len(row)} {column} do not fit {len(feature['input_ids'])} input_ids.")
    return rows
