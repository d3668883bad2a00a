"""LLaMA-Factory's collators, plus feedback masking of the labels and padded `semantic_ids`."""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from llamafactory.data.collator import MultiModalDataCollatorForSeq2Seq, SFTDataCollatorWith4DAttentionMask
from transformers import DataCollatorForSeq2Seq

from ...config import FeedbackConfig, HSAConfig
from ...feedback import IGNORE_INDEX, apply_loss_mask, mask_labels
from ...semantics import SemanticType
from .token_table import (
    LOSS_MASK_COLUMN,
    LOSS_WEIGHTS_COLUMN,
    ROW_SAMPLES_COLUMN,
    ROW_SOURCE_COLUMN,
    SEMANTIC_COLUMN,
    TURN_COLUMN,
)
from .turns import has_turns


@dataclass
class PaddedPositionsMixin(DataCollatorForSeq2Seq):
    """Pads `position_ids` to the ids, which transformers' collator and LLaMA-Factory's do not.

    Packed rows bring positions of their own. Where their length is no multiple of `pad_to_multiple_of`, or a dummy image is
    added, the ids become longer. What is added counts from 0 as a document of its own would.
    """

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        rows = [feature.pop("position_ids", None) for feature in features]
        batch = super().__call__(features, return_tensors)
        if all(row is not None for row in rows):
            batch["position_ids"] = self._pad_positions(rows, batch["input_ids"].shape[1])
        return batch

    def _pad_positions(self, rows: list[Any], width: int) -> torch.Tensor:
        padded = []
        for row in rows:
            own, added = torch.as_tensor(row), torch.arange(width - len(row))
            padded.append(torch.cat([own, added] if self.tokenizer.padding_side == "right" else [added, own]))
        return torch.stack(padded)


@dataclass
class TypedCollatorMixin(MultiModalDataCollatorForSeq2Seq, PaddedPositionsMixin):
    """Pads a batch as LLaMA-Factory does and makes `labels` and `semantic_ids` fit it.

    It stands before the collator that LLaMA-Factory pads all rows by, behind those that make rows of something else (pairs).

    Features hold `input_ids`, `attention_mask`, `labels`, and, as the processor writes them, `semantic_ids` and
    `loss_mask`. Features without `loss_mask` (hand-made, already tokenized) are masked by finding the marker's id. Where
    the rules have turns, features hold `turn_ids`, too; where they have none, that column is left out of the batch. Where a
    feature holds `loss_weights`, the batch has them, (B, L) float32, 0 at padding: for the trainer, not for the model.

    Args:
        hsa_config: None: no `semantic_ids` are made, and packed rows keep LLaMA-Factory's block-diagonal mask.
        feedback_config: None: only weights, recorded in `loss_mask`, change the labels.

    Raises:
        ValueError: If a feature has no `semantic_ids`, or no `turn_ids` that the rules need, lengths differ, or no token of the batch would be trained.

    Example:
        Two samples; the second one's loss mask keeps its first label out of the loss (padding id 0, on the right)::

            {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "semantic_ids": [0, 1, 2], "loss_mask": [1, 1, 1], …}
            {"input_ids": [8, 9],    "labels": [8, 9],       "semantic_ids": [0, 2],    "loss_mask": [0, 1], …}

        become, among the others, with `pad_to_multiple_of` 4::

            input_ids     [[5, 6, 7, 0], [8, 9, 0, 0]]
            labels        [[-100, 6, 7, -100], [-100, 9, -100, -100]]
            semantic_ids  [[0, 1, 2, 2], [0, 2, 2, 2]]  # padding is NOISE
    """

    hsa_config: HSAConfig | None = None
    feedback_config: FeedbackConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        # of the rows that LLaMA-Factory is about to make, in their order: columns that it does not know
        self._carried: list[dict[str, Any]] = []
        self.marker_id: int | None = None
        if self.feedback_config is not None:
            tokenizer: Any = self.tokenizer
            self.marker_id = tokenizer.convert_tokens_to_ids(self.feedback_config.token)

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> dict[str, torch.Tensor]:
        carried, self._carried = self._carried[: len(features)], self._carried[len(features) :]
        nothing: dict[str, Any] = {}
        features = [{**feature, **more} for feature, more in zip_longest(features, carried, fillvalue=nothing)]
        needs_turns = has_turns(self.hsa_config)
        semantic_rows, turn_rows, mask_rows = [], [], []
        for feature in features:
            for column in (ROW_SOURCE_COLUMN, ROW_SAMPLES_COLUMN):
                feature.pop(column, None)
            semantic_ids, turn_ids = feature.pop(SEMANTIC_COLUMN, None), feature.pop(TURN_COLUMN, None)
            if needs_turns:
                turn_rows.append(_checked_row(feature, TURN_COLUMN, turn_ids))
            if self.hsa_config is not None:
                semantic_rows.append(_checked_row(feature, SEMANTIC_COLUMN, semantic_ids))
                mask_rows.append(_as_list(feature["attention_mask"]))

        weight_rows = _weight_rows(features)
        self._mask_labels(features)
        batch = super().__call__(features)
        if self.hsa_config is not None:
            batch[SEMANTIC_COLUMN] = self._pad(semantic_rows, batch["input_ids"], int(SemanticType.NOISE))
            batch["attention_mask"] = self._pad(mask_rows, batch["input_ids"], 0)
            if (
                "position_ids" in batch
                and batch["position_ids"].dim() == 2
                and not bool((batch["attention_mask"] > 1).any())
            ):
                # plain packing: its samples count their positions anew, but see each other, as in LLaMA-Factory
                batch["document_ids"] = torch.zeros_like(batch["input_ids"])
        if needs_turns:
            batch[TURN_COLUMN] = self._pad(turn_rows, batch["input_ids"], 0)
        if weight_rows:
            batch[LOSS_WEIGHTS_COLUMN] = self._pad(weight_rows, batch["input_ids"], 0, torch.float32)
        return batch

    def _compute_rope_position_ids_with_packing(
        self,
        features: dict[str, torch.Tensor],
        mm_inputs: dict[str, Any],
        packing_params_list: list[dict[str, Any] | None],
        batch_imglens: list[int],
        batch_vidlens: list[int],
        batch_audlens: list[int],
        has_dummy_image: bool,
    ) -> None:
        """Compute M-RoPE positions document by document; what pads the rows to the batch is one document more."""
        mask = features["attention_mask"]
        if not has_dummy_image and self.tokenizer.padding_side == "right":  # else LLaMA-Factory makes them itself
            width = mask.shape[1]
            packing_params_list = [_with_padding(params, width) for params in packing_params_list]
        super()._compute_rope_position_ids_with_packing(
            features, mm_inputs, packing_params_list, batch_imglens, batch_vidlens, batch_audlens, has_dummy_image
        )
        features["attention_mask"] = mask  # with a dummy image LLaMA-Factory makes it longer than the ids, and a float

    def _mask_labels(self, features: list[dict[str, Any]]) -> None:
        is_masked = False  # by feedback or a weight: what LLaMA-Factory itself masks is its own affair
        for feature in features:
            is_recorded = LOSS_MASK_COLUMN in feature
            # labels of another length are references of predict_with_generate
            if "labels" in feature and (is_recorded or len(feature["labels"]) == len(feature["input_ids"])):
                labels = trained_labels(feature, self.feedback_config, self.marker_id)
                is_masked |= self.feedback_config is not None or labels != _as_list(feature["labels"])
                feature["labels"] = labels
            feature.pop(LOSS_MASK_COLUMN, None)

        if is_masked:
            self._check_trained([label for feature in features for label in feature.get("labels", [])])

    def _check_trained(self, labels: list[int]) -> None:
        if labels and all(label == IGNORE_INDEX for label in labels):
            raise ValueError(
                "No token of this batch is left to train: feedback or the messages' weights mask all of it. Its loss "
                "would be NaN. Prepare the data through the integration, which drops such samples."
            )

    def _pad(
        self, rows: list[Any], input_ids: torch.Tensor, value: int, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Pad on the tokenizer's side; dummy images stand between the sample and the padding and count as such."""
        padded = torch.full_like(input_ids, value, dtype=dtype)
        for i, row in enumerate(rows):
            values = torch.tensor(row, dtype=padded.dtype)
            if self.tokenizer.padding_side == "left":
                padded[i, padded.shape[1] - len(row) :] = values
            else:
                padded[i, : len(row)] = values
        return padded


@dataclass
class HSADataCollator(TypedCollatorMixin, SFTDataCollatorWith4DAttentionMask):
    """The collator of stage `sft`: packed rows too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hsa_config is not None:
            self.block_diag_attn = False  # the plan reads the documents from the 2-D mask; no N×N mask is built


def _with_padding(params: dict[str, Any] | None, width: int) -> dict[str, Any] | None:
    """Return the facts of a packed row with one more boundary, if the row is shorter than the batch."""
    if params is None or params["sequence_boundaries"][-1] == width:
        return params
    return {**params, "sequence_boundaries": [*params["sequence_boundaries"], width]}


def _weight_rows(features: list[dict[str, Any]]) -> list[Any]:
    """Take the weights out of the features; a feature without any has 1 everywhere. Empty: none has any."""
    rows = [feature.pop(LOSS_WEIGHTS_COLUMN, None) for feature in features]
    if all(row is None for row in rows):
        return []
    return [
        [1.0] * len(feature["input_ids"]) if row is None else _as_list(row) for row, feature in zip(rows, features)
    ]


def trained_labels(feature: dict[str, Any], config: FeedbackConfig | None, marker_id: int | None) -> list[int]:
    """Return the labels of a sample or packed row as the model gets them.

    Args:
        feature: With `input_ids`, `labels` and, where the processor recorded it, `loss_mask`.
        config: None: no feedback; a weight recorded in `loss_mask` counts all the same.
        marker_id: Id of the marker, for features without `loss_mask`.
    """
    labels = _as_list(feature["labels"])
    loss_mask = feature.get(LOSS_MASK_COLUMN)
    if loss_mask is not None:
        return apply_loss_mask(labels, _as_list(loss_mask))
    if config is None or marker_id is None:
        return labels
    return mask_labels(labels, _as_list(feature["input_ids"]), marker_id, config)


def _checked_row(feature: dict[str, Any], column: str, ids: Any) -> list[int]:
    """Return a feature's semantic_ids or turn_ids as a list that fits its `input_ids`."""
    if ids is None:
        lacking = "HSA" if column == SEMANTIC_COLUMN else "a rule with turns"
        raise ValueError(
            f"A sample has no `{column}`. Data that was tokenized without {lacking} (`tokenized_path`, or a column that was "
            "removed) must be tokenized again with it."
        )
    row = _as_list(ids)
    if len(row) != len(feature["input_ids"]):
        raise ValueError(f"{len(row)} {column} do not fit {len(feature['input_ids'])} input_ids.")
    return row


def _as_list(values: Any) -> list[int]:
    return values.tolist() if hasattr(values, "tolist") else list(values)
