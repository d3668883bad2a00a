"""One query of an attention plan: what a model takes token by token, once the plan of several tokens is made."""

import torch

from .plan import AttentionPlan


class QueryPlan(AttentionPlan):
    """A plan for one query and the keys up to it, taken out of a plan for more of them.

    What the whole plan has built (its bias) is shared, so that a step costs a view of it.

    Args:
        whole: The plan, of rows in which neither its queries nor their keys are padding.
        index: Which of its queries.

    Attributes:
        is_padding: None: padding among the other keys is hidden by the bias, and must be finite there, as in a cache.
    """

    is_padding = None

    def __init__(self, whole: AttentionPlan, index: int) -> None:
        self._whole, self._index = whole, index
        self.config = whole.config
        self.batch_size, self.query_length = whole.batch_size, 1
        self.key_length = whole.key_length - whole.query_length + index + 1
        self.has_gaps, self._packed = whole.has_gaps, whole.has_packed_rows()
        self._start()

    @property
    def semantic_ids(self) -> torch.Tensor:
        """(B, L) int64."""
        return self._whole.semantic_ids[:, : self.key_length]

    @property
    def document_ids(self) -> torch.Tensor:
        """(B, L); 0 is padding."""
        return self._whole.document_ids[:, : self.key_length]

    @property
    def positions(self) -> torch.Tensor:
        """(B, L) int64."""
        return self._whole.positions[:, : self.key_length]

    @property
    def device(self) -> torch.device:
        """Where the plan's tensors lie."""
        return self._whole.device

    def dense_bias(self, dtype: torch.dtype, sliding_window: int | None = None, neutral: bool = False) -> torch.Tensor:
        """Return the query's row, (B, 1, 1, L), of the whole plan's bias."""
        key = (dtype, sliding_window, neutral)
        if key not in self._bias:
            rows = self._whole.dense_bias(dtype, sliding_window, neutral)
            self._bias[key] = rows[:, :, self._index : self._index + 1, : self.key_length]
        return self._bias[key]
