"""A plan cut into blocks of queries: what `blockwise` needs to know before it touches q, k, v."""

import torch

from ...layer_rules import LayerRules
from ...plan import AttentionPlan
from .segment import Segment
from .workspace import WorkspacePool


class Layout:
    """All segments of a batch that have queries: made by ``plan.once(Layout, rules)``.

    Args:
        plan: What the tokens are.
        rules: What holds in the layer.

    Attributes:
        segments: The segments, row by row.
        is_complete: Whether every query is a real token.
        workspaces: Buffers that the layers' passes use again.
    """

    def __init__(self, plan: AttentionPlan, rules: LayerRules) -> None:
        first_query = plan.key_length - plan.query_length
        self.is_complete = bool((plan.document_ids[:, first_query:] != 0).all())
        self.segments: list[Segment] = []
        self.workspaces = WorkspacePool()
        last_seen = plan.last_seen(rules)
        for row, ids in enumerate(plan.document_ids):
            types, positions, until = plan.semantic_ids[row], plan.positions[row], last_seen[row]
            for index in _contiguous_documents(ids):
                if len(index) and int(index[-1]) >= first_query:
                    tokens = (types[index], positions[index], until[index])
                    self.segments.append(Segment(row, index, *tokens, first_query, rules, plan.has_gaps))


def _contiguous_documents(document_ids: torch.Tensor) -> list[torch.Tensor]:
    """Return the places of a row's real tokens: in one piece, or by document if documents are interleaved."""
    index = document_ids.nonzero().flatten()
    ids = document_ids[index]
    changes = int((ids[1:] != ids[:-1]).sum())
    numbers = torch.unique(ids)
    if changes < max(len(numbers), 1):
        return [index]
    return [(document_ids == number).nonzero().flatten() for number in numbers]
