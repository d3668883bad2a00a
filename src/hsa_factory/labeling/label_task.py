"""Labelling as work on files: the rules, how text is counted, and what becomes of the columns of a table."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .formats import DatasetFormat
from .labeller import SampleLabeller, add_anchor
from .rule_set import RuleSet
from .summary import Summary
from .token_counter import TokenCounter, load_tokenizer


if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class LabelTask:
    """Types for the messages of samples.

    Attributes:
        dataset_format: Of the samples.
        rules: The rules.
        tokenizer: Counts tokens; None: characters are counted.
    """

    dataset_format: DatasetFormat
    rules: RuleSet
    tokenizer: str | None = None

    def fingerprint(self) -> dict[str, Any]:
        """Return what the labels and their counts depend on."""
        rules = json.dumps(self.rules.to_list(), ensure_ascii=False)
        return {
            "rules": hashlib.sha256(rules.encode()).hexdigest(),
            "dataset_format": asdict(self.dataset_format),
            "tokenizer": self.tokenizer,
        }

    def new_counts(self) -> Summary:
        """Return counts of nothing yet."""
        return Summary()

    def start(self) -> "_LabelWork":
        """Return what labels, with the tokenizer loaded."""
        return _LabelWork(self)


class _LabelWork:
    def __init__(self, task: LabelTask) -> None:
        self.task = task
        count = TokenCounter(load_tokenizer(task.tokenizer)) if task.tokenizer is not None else None
        self.labeller = SampleLabeller(task.dataset_format, task.rules, count)
        self.types_parts = any(rule.types_parts for rule in task.rules)

    def process(self, sample: Any, counts: Summary, where: str, is_first: bool) -> list[dict[Any, Any]]:
        labelled = self.labeller.label(sample, counts, where)
        if is_first and self.types_parts:
            add_anchor(labelled, self.task.dataset_format)
        return [labelled]

    def table(self, batch: "pa.RecordBatch", kept: Sequence[int], samples: Sequence[dict[Any, Any]]) -> "pa.Table":
        from .columns import labelled_table

        return labelled_table(batch, kept, samples, self.task.dataset_format)
