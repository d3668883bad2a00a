"""One layer of an `HSACache`: keys and values in a buffer, from which what the key table lets go is taken."""

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from .key_table import KeyTable


NO_HSA = "An HSACache needs a model with HSA: call enable_hsa(model) first."


class HSACacheLayer(CacheLayerMixin):
    """Keys and values of one layer, in a buffer with room for the next tokens.

    Args:
        table: What is known of the keys, shared with the other layers that have the same rules.
        room: How many tokens more a new buffer has room for.
    """

    is_sliding = False

    def __init__(self, table: KeyTable, room: int) -> None:
        super().__init__()
        self.table = table
        self.room = room
        self._buffers: list[torch.Tensor] = []  # keys, values
        self._length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take dtype and device from the first keys."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new keys and return them with all that this forward may see; then let go of what later ones cannot.

        Args:
            key_states: (B, Hkv, Q, D).
            value_states: (B, Hkv, Q, E).
            *args: Not used.
            **kwargs: Not used.

        Returns:
            (B, Hkv, K + Q, D) and (B, Hkv, K + Q, E).

        Raises:
            ValueError: If no forward with HSA is under way.
        """
        if not self.table.is_open:
            raise ValueError(NO_HSA)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)

        if self.table.new_padding is not None:  # zeros: a bias of −∞ hides them, but would not hide NaN
            padding = self.table.new_padding[:, None, :, None]
            key_states, value_states = key_states.masked_fill(padding, 0), value_states.masked_fill(padding, 0)
        new_length = self._length + key_states.shape[2]
        result = [self._append(index, states, new_length) for index, states in enumerate((key_states, value_states))]
        self._length, kept = new_length, result
        if self.table.keep is not None:
            kept = [self._select(states, self.table.keep) for states in result]
            self._buffers = kept
            self._length = self.table.keep.shape[1]
            kept = [buffer[:, :, : self._length] for buffer in kept]
        self.keys, self.values = kept
        return result[0], result[1]

    def _append(self, index: int, states: torch.Tensor, new_length: int) -> torch.Tensor:
        old = self._buffers[index] if self._buffers and len(self._buffers) > index else None
        if old is None and self.table.keep is not None:
            return states  # selected from right away
        if old is not None and states.requires_grad and torch.is_grad_enabled():
            self._buffers[index] = torch.cat([old[:, :, : self._length], states], dim=2)
            return self._buffers[index]

        writable = old is not None and (torch.is_inference_mode_enabled() or not old.is_inference())
        if not writable or old.shape[2] < new_length:
            buffer = states.new_empty(*states.shape[:2], new_length + self.room, states.shape[3])
            if old is not None:
                buffer[:, :, : self._length] = old[:, :, : self._length]
            self._buffers[index : index + 1] = [buffer]
        self._buffers[index][:, :, self._length : new_length] = states
        return self._buffers[index][:, :, :new_length]

    def _select(self, states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Copy the keys at some places, (B, K′), into a new buffer."""
        number = places.shape[1]
        buffer = states.new_empty(*states.shape[:2], number + self.room, states.shape[3])
        index = places[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
        buffer[:, :, :number] = states.gather(2, index)
        return buffer

    def get_seq_length(self) -> int:
        """Return the number of keys held."""
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys that the next forward sees, and 0."""
        return self._length + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: there is no limit. (The name in newer transformers.)"""
        return -1

    def get_max_cache_shape(self) -> int:
        """Return -1: there is no limit."""
        return -1

    def crop(self, number: int) -> None:
        """Drop the last `number` keys."""
        self._length -= number
        self._refresh()

    def change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Reorder, repeat or select rows."""
        self._buffers = [change(buffer) for buffer in self._buffers]
        self._refresh()

    def reset(self) -> None:
        """Forget everything."""
        self._buffers, self._length = [], 0
        self.keys = self.values = None

    def nbytes(self) -> int:
        """Return the memory of keys and values, spare room included."""
        return sum(buffer.untyped_storage().nbytes() for buffer in self._buffers)

    def _refresh(self) -> None:
        if self._buffers:
            self.keys, self.values = (buffer[:, :, : self._length] for buffer in self._buffers)
