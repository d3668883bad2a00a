"""The rows of a cache: reordered, repeated, selected, shortened, forgotten."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache

from ...attention import LayerRules
from ..transformers_versions import CROP_BY_NUMBER
from .incoming import EndedRows, IncomingTypes
from .key_table import KeyTable
from .layer import HSACacheLayer
from .sequence import SeenTokens


class CacheOfRows(Cache):
    """What all parts of an `HSACache` do together when its rows change.

    Attributes:
        layers: Ours for softmax attention, transformers' own for the others.
        tables: Which keys the layers hold, by their rules.
    """

    tables: dict[LayerRules, KeyTable]
    _seen: SeenTokens
    _incoming: IncomingTypes
    _ends: EndedRows

    @abstractmethod
    def abort(self) -> None:
        """End a forward under way, as if it had not begun."""

    @abstractmethod
    def _forget(self) -> None:
        """Hold no token."""

    def _change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._seen.change(change)
        for table in self.tables.values():
            table.change(change)
        for layer in self._own_layers():
            layer.change(change)
        self._incoming.change(change)
        self._ends.change(change)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let each row go on from another one, as beam search does. `beam_idx`: (B,)."""
        self.abort()
        self._change(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))
        self._reorder_others(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self.abort()
        rows = self._seen.rows
        self._change(repeating(repeats))
        if rows:
            self._reorder_others(repeating(repeats)(torch.arange(rows)))

    def select_rows(self, rows: Sequence[int | None]) -> None:
        """Keep some rows, in this order, and let others begin anew.

        Args:
            rows: For each row afterwards, which one it goes on from; None: an empty one, which has seen nothing.

        Raises:
            ValueError: If the model has layers of linear attention, whose state cannot be emptied in one row.
        """
        self.abort()
        if not self._seen.rows:
            return
        is_empty = torch.tensor([row is None for row in rows])
        if is_empty.all():
            self.reset()
            return
        if self._other_layers() and is_empty.any():
            raise ValueError("A cache of linear attention cannot begin anew in one row: make another cache.")
        indices = [place if row is None and place < self._seen.rows else (row or 0) for place, row in enumerate(rows)]
        if indices != list(range(self._seen.rows)):
            self.reorder_cache(torch.tensor(indices))
        if is_empty.any():
            is_empty = is_empty.to(self._seen.last_positions.device)
            self._seen.clear_rows(is_empty)
            for table in self.tables.values():
                table.clear_rows(is_empty)

    def drop_padding(self, least: int = 1) -> None:
        """Forget padding between tokens, and keys that nobody can see, in all rows together.

        The places of tokens change (`get_seq_length` is then the number of tokens that the longest row has seen), so that it is
        for those who count by rows, between two forwards, and not for `model.generate`.

        Args:
            least: For how many columns fewer the keys are moved.
        """
        self.abort()
        if self._other_layers():
            return
        if not len(self._seen):
            return
        for table in self.tables.values():
            places = table.drop_padding(*self._next(), least)
            for layer in self._own_layers():
                if places is not None and layer.table is table:
                    layer.keep(places)
        if any(len(table) for table in self.tables.values()):
            self._seen.drop_padding()

    def count_keys(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how many keys each row holds, and how many of them its next token may see, (B,) int64 each.

        They are those of the layers that hold most.
        """
        self.abort()
        tables = [table for table in self.tables.values() if table.keys is not None]
        if not tables:
            nothing = torch.zeros(self._seen.rows, dtype=torch.long)
            return nothing, nothing
        held = torch.stack([table.keys.is_real.sum(1) for table in tables if table.keys is not None])
        visible = torch.stack([table.visible(*self._next()).sum(1) for table in tables])
        return held.amax(0), visible.amax(0)

    def _next(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the position of each row's next token and the least turn that it may have, (B,) each."""
        turns = self._seen.last_turns
        return self._seen.last_positions[:, 0] + 1, None if turns is None else turns[:, 0]

    def _reorder_others(self, rows: torch.Tensor) -> None:
        for layer in self._other_layers():
            layer.reorder_cache(rows)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows."""
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        self.reorder_cache(indices)

    def _own_layers(self) -> list[HSACacheLayer]:
        return [layer for layer in self.layers if isinstance(layer, HSACacheLayer)]

    def _other_layers(self) -> list[Any]:
        return [layer for layer in self.layers if not isinstance(layer, HSACacheLayer)]

    def crop(self, max_length: int) -> None:
        """Forget the last tokens.

        Args:
            max_length: How many to remember; negative: how many to forget. 0 forgets all, or, in versions of transformers
                whose caches are told only how many to forget, none.

        Raises:
            ValueError: If keys have been dropped: those that the remembered tokens would need may be among them.
        """
        self.abort()
        number = -max_length if max_length < 0 else len(self._seen) - max_length
        if number <= 0 or (max_length == 0 and CROP_BY_NUMBER):
            return
        if self._other_layers():
            raise ValueError(
                "A cache of linear attention cannot be cropped: its state has no way back. Keep a copy.deepcopy(cache) of the "
                "place to go back to, or read the remaining tokens into a new cache."
            )
        if any(len(table) < len(self._seen) for table in self.tables.values()):
            raise ValueError(
                "This HSACache cannot be cropped: keys that the remaining tokens would see are gone. Make it with "
                "HSACache(config, evict=False) where tokens are taken back, or read the remaining ones into a new cache."
            )
        self._seen.change(lambda tensor: tensor[:, :-number])
        for table in self.tables.values():
            table.change(lambda tensor: tensor[:, :-number])
        for layer in self._own_layers():
            layer.crop(number)

    def reset(self) -> None:
        """Forget everything."""
        self.abort()
        for table in self.tables.values():
            table.forget()
        super().reset()
        self._forget()


def repeating(repeats: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what repeats each row of a tensor (B, …)."""
    return lambda tensor: tensor.repeat_interleave(repeats, dim=0)
