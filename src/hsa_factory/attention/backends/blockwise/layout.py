"""A plan cut into blocks of queries: what `blockwise` needs to know before it touches q, k, v."""

import torch

from ...layer_rules import EffectiveRules
from .segment import Sequence
from .workspace import WorkspacePool


class Layout:
    """All sequences of a batch that have queries.

    `is_complete`: every query is a real token. `workspaces`: buffers that the layers' passes use again.

    Args:
        document_ids: (B, L), 0 is padding.
        semantic_ids: (B, L).
        query_length: Q.
        rules: The rules that hold.
        positions: (B, L), if keys of the rows' one document are missing. None: none is.
    """

    def __init__(
        self,
        document_ids: torch.Tensor,
        semantic_ids: torch.Tensor,
        query_length: int,
        rules: EffectiveRules,
        positions: torch.Tensor | None = None,
    ) -> None:
        first_query = document_ids.shape[1] - query_length
        self.is_complete = bool((document_ids[:, first_query:] != 0).all())
        self.sequences: list[Sequence] = []
        self.workspaces = WorkspacePool()
        for row, ids in enumerate(document_ids):
            for index in _contiguous_documents(ids):
                if len(index) and int(index[-1]) >= first_query:
                    place = None if positions is None else positions[row, index]
                    self.sequences.append(
                        Sequence(row, index, semantic_ids[row, index], ids[index], first_query, rules, place)
                    )


def _contiguous_documents(document_ids: torch.Tensor) -> list[torch.Tensor]:
    """Return the places of a row's real tokens: in one piece, or by document if documents are interleaved."""
    index = document_ids.nonzero().flatten()
    ids = document_ids[index]
    changes = int((ids[1:] != ids[:-1]).sum())
    numbers = torch.unique(ids)
    if changes < max(len(numbers), 1):
        return [index]
    return [(document_ids == number).nonzero().flatten() for number in numbers]
