"""LLaMA-Factory's collator of replies with a label: a batch and its KL half, each with its types."""

from dataclasses import dataclass
from typing import Any

import torch
from llamafactory.data.collator import KTODataCollatorWithPadding

from .collator import TypedCollatorMixin
from .labelled import KL_PREFIX
from .pairwise_collator import carried_columns
from .token_table import SEMANTIC_COLUMN, TURN_COLUMN


@dataclass
class _RememberingCollator(TypedCollatorMixin):
    """Keeps the batches that it makes: LLaMA-Factory takes of the second only what it knows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._made: list[dict[str, torch.Tensor]] = []

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> dict[str, torch.Tensor]:
        self._made.append(super().__call__(features, return_tensors))
        return self._made[-1]

    def _check_trained(self, labels: list[int]) -> None:
        if not self._made:  # the KL half is compared, not trained
            super()._check_trained(labels)


@dataclass
class HSALabelledCollator(KTODataCollatorWithPadding, _RememberingCollator):
    """Pads samples and their KL half as LLaMA-Factory does, and the types of both with them.

    Features hold, for the sample and with `kl_` before it for the other, what `TypedCollatorMixin` needs of a row. The batch has
    `semantic_ids` (B, L) and `kl_semantic_ids` (B, L'), with rules that have turns `turn_ids` and `kl_turn_ids`, too.
    """

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> dict[str, torch.Tensor]:
        """Make a batch."""
        self._made = []
        self._carried = [carried_columns(feature, prefix) for prefix in ("", KL_PREFIX) for feature in features]
        batch = super().__call__(features)
        _, kl_batch = self._made
        for column in (SEMANTIC_COLUMN, TURN_COLUMN):
            if column in kl_batch:
                batch[KL_PREFIX + column] = kl_batch[column]
        return batch
