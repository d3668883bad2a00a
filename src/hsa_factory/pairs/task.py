"""Pairs as work on files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .counts import PairCounts
from .options import PairOptions
from .sample_pairs import PairFormat, pairs_of_sample


if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class PairTask:
    """Pairs of the feedback in samples.

    Attributes:
        entry: What ``dataset_info.json`` says of the samples.
        options: Which feedback becomes a pair.
    """

    entry: Mapping[str, Any]
    options: PairOptions

    def fingerprint(self) -> dict[str, Any]:
        """Return what the pairs depend on."""
        return {"entry": self.entry, "options": asdict(self.options)}

    def new_counts(self) -> PairCounts:
        """Return counts of nothing yet."""
        return PairCounts()

    def start(self) -> "_PairWork":
        """Return what makes pairs."""
        return _PairWork(PairFormat.from_entry(self.entry), self.options)


class _PairWork:
    def __init__(self, pair_format: PairFormat, options: PairOptions) -> None:
        self.pair_format, self.options = pair_format, options

    def process(self, sample: Any, counts: PairCounts, where: str, is_first: bool) -> list[dict[Any, Any]]:
        return pairs_of_sample(sample, self.pair_format, self.options, counts, where)

    def table(self, batch: "pa.RecordBatch", kept: Sequence[int], samples: Sequence[dict[Any, Any]]) -> "pa.Table":
        from .tables import pairs_table

        return pairs_table(batch, kept, samples, self.pair_format)
