"""Which keys of a row one rank needs of another, when each rank of a group holds one slice of the row.

Every rank knows the types, documents and turns of the whole row, so that each finds by itself which of its keys a later rank
can still see, and which keys come from earlier ranks: no index travels.
"""

from dataclasses import dataclass

import torch

from .documents import by_document
from .layer_rules import LayerRules
from .plan import AttentionPlan


_NEVER = 2**40


@dataclass(frozen=True)
class Slices:
    """A row of tokens in equal slices, one a rank, in order; the last ones may end with padding that the row has not.

    Attributes:
        length: L, tokens of the row.
        ranks: R.
        rank: This one.
    """

    length: int
    ranks: int
    rank: int

    @property
    def size(self) -> int:
        """S, tokens of a slice: at least one."""
        return max(1, -(-self.length // self.ranks))

    @property
    def own(self) -> slice:
        """Where this rank's tokens lie in the row that `fill` makes."""
        return slice(self.rank * self.size, (self.rank + 1) * self.size)

    def fill(self, tensor: torch.Tensor, value: float, dim: int = 1) -> torch.Tensor:
        """Lengthen a dimension of L to R·S."""
        missing = self.ranks * self.size - self.length
        if not missing:
            return tensor
        shape = list(tensor.shape)
        shape[dim] = missing
        return torch.cat([tensor, tensor.new_full(shape, value)], dim=dim)

    def cut(self, tensor: torch.Tensor, value: float = 0, dim: int = 1) -> torch.Tensor:
        """Return this rank's part of a dimension of L; `value` stands at padding that the row has not."""
        start, stop = self.own.start, min(self.own.stop, self.length)
        part = tensor.narrow(dim, min(start, self.length), max(stop - start, 0))
        if part.shape[dim] == self.size:
            return part
        shape = list(part.shape)
        shape[dim] = self.size - part.shape[dim]
        return torch.cat([part, part.new_full(shape, value)], dim=dim)


class Row:
    """The whole row of a plan, as far as all rules share it.

    Args:
        plan: Of the whole row, Q = L.
        slices: How it is cut.

    Attributes:
        plan: The plan, with the padding at the end that makes slices equal.
        slices: How it is cut.
        document: (B, R·S) int64, the number of each token's document among those of the batch row, from 0.
    """

    def __init__(self, plan: AttentionPlan, slices: Slices) -> None:
        self.slices = slices
        turns = None if plan.turn_ids is None else slices.fill(plan.turn_ids, 0)
        self.plan = AttentionPlan(
            slices.fill(plan.semantic_ids, 2),
            slices.fill(plan.document_ids, 0),
            slices.fill(plan.positions, 0),
            slices.ranks * slices.size,
            turn_ids=turns,
        )
        order, starts = by_document(self.plan.document_ids)
        self.document = torch.empty_like(order).scatter_(1, order, starts.cumsum(1) - 1)
        self._number_of_documents = int(self.document.amax()) + 1 if self.document.numel() else 1

    def needed_by(self, rank: int, rules: LayerRules) -> torch.Tensor:
        """Return (B, rank·S) bool: the keys of earlier ranks that a query of this rank sees."""
        size = self.slices.size
        before, there = slice(0, rank * size), slice(rank * size, (rank + 1) * size)
        plan = self.plan
        types, last_seen = plan.semantic_ids[:, before], plan.last_seen(rules)[:, before]
        needed = torch.zeros_like(types, dtype=torch.bool)
        for kind in range(3):
            hidden = [query_type for query_type, key_type in rules.hide if key_type == kind]
            first = self._first_query(there, hidden).gather(1, self.document[:, before])
            needed |= (types == kind) & (first <= last_seen)
        return needed & (plan.document_ids[:, before] != 0)

    def _first_query(self, places: slice, hidden: list[int]) -> torch.Tensor:
        """Return (B, documents), the lowest position that each document has among some queries, but those of hidden types."""
        plan = self.plan
        positions, types = plan.positions[:, places], plan.semantic_ids[:, places]
        skipped = plan.document_ids[:, places] == 0
        for kind in hidden:
            skipped = skipped | (types == kind)
        table = positions.new_full((plan.batch_size, self._number_of_documents), _NEVER)
        return table.scatter_reduce_(
            1, self.document[:, places], positions.masked_fill(skipped, _NEVER), "amin", include_self=True
        )


class Route:
    """The keys that one rank sends and gets in layers of the same rules, and the plan by which it attends.

    Its keys are those received, at the right of K places, then the S of its own.

    Args:
        row: The whole row.
        rules: Of the layer.

    Attributes:
        plan: (B, K + S) keys, S queries.
        send_rows, send_places: (n,) row of the batch and place in the slice of each key sent, by the rank that gets it.
        got_rows, got_places: (m,) row and place among the K + S of each key received, by the rank that sends it.
        send_counts, got_counts: R numbers of keys each.
    """

    def __init__(self, row: Row, rules: LayerRules) -> None:
        slices, size = row.slices, row.slices.size
        sent = [
            row.needed_by(rank, rules)[:, slices.own].nonzero() if rank > slices.rank else None
            for rank in range(slices.ranks)
        ]
        needed = row.needed_by(slices.rank, rules)
        found = [needed[:, rank * size : (rank + 1) * size].nonzero() for rank in range(slices.rank)]
        self.send_counts = [0 if places is None else len(places) for places in sent]
        self.got_counts = [*map(len, found), *[0] * (slices.ranks - slices.rank)]
        self.send_rows, self.send_places = _joined([places for places in sent if places is not None], needed)

        for rank, places in enumerate(found):
            places[:, 1] += rank * size
        self.got_rows, from_places = _joined(found, needed)
        self.room = int(needed.sum(1).amax()) if needed.numel() else 0
        number = needed.cumsum(1) - needed.sum(1, keepdim=True) + self.room - 1
        self.got_places = number[self.got_rows, from_places]
        self.plan = self._plan(row, from_places)

    @property
    def keys(self) -> int:
        """K + S."""
        return self.plan.key_length

    def _plan(self, row: Row, from_places: torch.Tensor) -> AttentionPlan:
        whole = row.plan

        def joined(values: torch.Tensor, fill: int) -> torch.Tensor:
            received = values.new_full((values.shape[0], self.room), fill)
            received[self.got_rows, self.got_places] = values[self.got_rows, from_places]
            return torch.cat([received, values[:, row.slices.own]], dim=1)

        documents, positions = joined(whole.document_ids, 0), joined(whole.positions, 0)
        is_packed = whole.has_packed_rows()
        if is_packed:
            positions = positions + _lift(joined(row.document, 0), positions, documents != 0)
        return AttentionPlan(
            joined(whole.semantic_ids, 2),
            documents,
            positions,
            row.slices.size,
            has_gaps=True,
            is_packed=is_packed,
            turn_ids=None if whole.turn_ids is None else joined(whole.turn_ids, 0),
        )


def _joined(parts: list[torch.Tensor], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Join (n, 2) rows and places; `like` says on which device there are none."""
    joined = torch.cat([torch.zeros(0, 2, dtype=torch.int64, device=like.device), *parts])
    return joined[:, 0], joined[:, 1]


def _lift(document: torch.Tensor, positions: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
    """Return (B, N) what to add to positions so that, where documents are not interleaved, they go up along the row."""
    number = int(document.amax()) + 1
    places = torch.arange(document.shape[1], device=document.device).expand_as(document)
    shape = (document.shape[0], number)
    begins = places.new_full(shape, _NEVER)
    begins.scatter_reduce_(1, document, places.masked_fill(~is_real, _NEVER), "amin")
    lengths = places.new_zeros(shape)
    lengths.scatter_reduce_(1, document, (positions + 1).masked_fill(~is_real, 0), "amax")
    order = begins.argsort(dim=1)
    ordered = lengths.gather(1, order)
    lift = torch.empty_like(lengths).scatter_(1, order, ordered.cumsum(1) - ordered)
    return lift.gather(1, document)
