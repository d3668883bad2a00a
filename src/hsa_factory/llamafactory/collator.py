"""LLaMA-Factory's SFT collator, plus feedback masking of the labels and padded `semantic_ids`."""

from dataclasses import dataclass
from typing import Any

import torch
from llamafactory.data.collator import SFTDataCollatorWith4DAttentionMask

from ..config import FeedbackConfig, HSAConfig
from ..feedback import IGNORE_INDEX, apply_loss_mask, mask_labels
from ..semantics import SemanticType
from .processor import LOSS_MASK_COLUMN, ROW_SOURCE_COLUMN, SEMANTIC_COLUMN


@dataclass
class HSADataCollator(SFTDataCollatorWith4DAttentionMask):
    """Pads a batch as LLaMA-Factory does and makes `labels` and `semantic_ids` fit it.

    Features hold `input_ids`, `attention_mask`, `labels`, and, as the processor writes them, `semantic_ids` and
    `loss_mask`. Features without `loss_mask` (hand-made, already tokenized) are masked by finding the marker's id.

    Args:
        hsa_config: None: no `semantic_ids` are made, and packed rows keep LLaMA-Factory's block-diagonal mask.
        feedback_config: None: labels stay as they are.

    Raises:
        ValueError: If a feature has no `semantic_ids`, lengths differ, or no token of the batch would be trained.
    """

    hsa_config: HSAConfig | None = None
    feedback_config: FeedbackConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hsa_config is not None:
            self.block_diag_attn = False  # the plan reads the documents from the 2-D mask; no N×N mask is built
        self.marker_id = None
        if self.feedback_config is not None:
            self.marker_id = self.tokenizer.convert_tokens_to_ids(self.feedback_config.token)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        features = [dict(feature) for feature in features]
        rows = []
        for feature in features:
            feature.pop(ROW_SOURCE_COLUMN, None)
            semantic_ids = feature.pop(SEMANTIC_COLUMN, None)
            if self.hsa_config is not None:
                rows.append(self._checked_row(feature, semantic_ids))

        self._mask_labels(features)
        batch = super().__call__(features)
        if self.hsa_config is not None:
            batch[SEMANTIC_COLUMN] = self._pad(rows, batch["input_ids"])
        return batch

    def _mask_labels(self, features: list[dict[str, Any]]) -> None:
        for feature in features:
            loss_mask = feature.pop(LOSS_MASK_COLUMN, None)
            if self.feedback_config is None or "labels" not in feature:
                continue

            labels, input_ids = _as_list(feature["labels"]), _as_list(feature["input_ids"])
            if len(labels) != len(input_ids):  # prompts and references of predict_with_generate
                return
            if loss_mask is not None:
                feature["labels"] = apply_loss_mask(labels, _as_list(loss_mask))
            else:
                feature["labels"] = mask_labels(labels, input_ids, self.marker_id, self.feedback_config)

        if self.feedback_config is not None and all(
            label == IGNORE_INDEX for feature in features for label in feature.get("labels", [])
        ):
            raise ValueError(
                f"No token of this batch is left to train: nothing trainable stands after {self.feedback_config.token}. "
                "Its loss would be NaN. Prepare the data through the integration, which drops such samples."
            )

    def _checked_row(self, feature: dict[str, Any], semantic_ids: Any) -> list[int]:
        if semantic_ids is None:
            raise ValueError(
                "A sample has no `semantic_ids`. Data that was tokenized without HSA (`tokenized_path`, or a column "
                "that was removed) must be tokenized again with it."
            )
        row = _as_list(semantic_ids)
        if len(row) != len(feature["input_ids"]):
            raise ValueError(f"{len(row)} semantic_ids do not fit {len(feature['input_ids'])} input_ids.")
        return row

    def _pad(self, rows: list[list[int]], input_ids: torch.Tensor) -> torch.Tensor:
        """Pad with NOISE on the tokenizer's side; dummy images stand between the sample and the padding."""
        semantic_ids = torch.full_like(input_ids, int(SemanticType.NOISE))
        for i, row in enumerate(rows):
            values = torch.tensor(row, dtype=semantic_ids.dtype)
            if self.tokenizer.padding_side == "left":
                semantic_ids[i, semantic_ids.shape[1] - len(row) :] = values
            else:
                semantic_ids[i, : len(row)] = values
        return semantic_ids


def _as_list(values: Any) -> list[int]:
    return values.tolist() if hasattr(values, "tolist") else list(values)
