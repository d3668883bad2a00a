"""Pairs for a reward model: each side is scored at its last token, and no token has a loss of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from .pairwise import TypedPairwiseProcessor
from .report import DatasetAccount
from .typed_processor import Sample


_NOT_MASKED = (
    "replies that feedback or a weight keeps out of the loss in other stages, wholly or in part; a reward model scores them as "
    "they are"
)


@dataclass
class TypedRewardProcessor(TypedPairwiseProcessor):
    """Pairs of which feedback and weights take nothing; which are left out for lack of a marker, `feedback.missing` says."""

    def _check_trained(self, sample: Sample, side: str = "") -> None:
        """Accept all: nothing is trained by labels, so that none need be left."""

    def _count_trained(self, sides: Sequence[Sample]) -> int:
        return len(sides)  # the last token of each

    def _count(self, sides: Sequence[Sample], account: DatasetAccount) -> None:
        """Leave the labels as LLaMA-Factory makes them, and count those that are masked in other stages."""
        for tokens in (sample.tokens for sample in sides):
            trained, tokens.loss_mask = tokens.trained, bytes([1]) * len(tokens.labels)
            account.notes[_NOT_MASKED] += trained < tokens.trained
        super()._count(sides, account)
