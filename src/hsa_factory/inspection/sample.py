"""One sample as the collator hands it to the model: what every view shows."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from ..feedback import IGNORE_INDEX
from ..semantics import SemanticType


@dataclass(frozen=True)
class InspectedSample:
    """A sample or packed row, unpadded and without dummy images.

    Attributes:
        index: Its number in the prepared data.
        dataset: Its data set; several names, joined by commas, for a row packed from several.
        input_ids: Token ids.
        semantic_ids: The `SemanticType` of each token.
        labels: What is trained; −100 is not.
        tokens: Each token as text.
    """

    index: int
    dataset: str
    input_ids: list[int]
    semantic_ids: list[int]
    labels: list[int]
    tokens: list[str]

    @property
    def trained(self) -> int:
        """Number of tokens that the loss counts."""
        return sum(label != IGNORE_INDEX for label in self.labels)

    def type_counts(self) -> dict[str, int]:
        """Number of tokens of each type, by name."""
        counts = Counter(self.semantic_ids)
        return {member.name: counts[int(member)] for member in SemanticType}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)
