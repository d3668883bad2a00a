"""Pairs for a reward model: each side is scored at its last token, and no token has a loss of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from .aligned import SOURCE_COLUMN
from .pairwise import TypedPairwiseProcessor
from .report import DatasetAccount
from .typed_processor import Sample


@dataclass
class TypedRewardProcessor(TypedPairwiseProcessor):
    """Pairs of which neither feedback nor weights take anything; `feedback.missing` says as elsewhere which are left out."""

    def _check_trained(self, sides: Sequence[Sample], source: str, account: DatasetAccount) -> None:
        """Leave the labels as LLaMA-Factory makes them: nothing is trained by them, so that nothing can be left of them."""
        for sample in sides:
            account.notes[_UNUSED] += sample.masked.is_masked
            sample.tokens.loss_mask = bytes([1]) * len(sample.tokens.labels)
