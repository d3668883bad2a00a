"""One layer of an `HSACache`: keys and values in a buffer, from which what the key table lets go is taken."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicCache, LinearAttentionCacheLayerMixin

from ...attention import LayerRules
from .key_table import KeyTable


NO_HSA = "An HSACache needs a model with HSA: call enable_hsa(model) first."
NOT_HANDED_ON = (
    "The model's layers did not get the HSACache: in training mode, gradient checkpointing drops it. Call model.eval() to "
    "read with a cache."
)
HALF_WAY = "A forward with this HSACache failed half-way, so it cannot be used any more: cache.reset() empties it."

_SHAPE = ("model_type", "hidden_size", "num_key_value_heads", "head_dim")
Buffers = tuple[torch.Tensor, ...]  # keys and values, (B, Hkv, room, D) each; none before the first


class HSACacheLayer(CacheLayerMixin):
    """Keys and values of one layer, in a buffer with room for the next tokens.

    New keys are written behind those held and count once `commit` is called; `abort` leaves the layer as it was.

    Args:
        table: What is known of the keys, shared with the other layers that have the same rules.
        room: How many tokens more a new buffer has room for.
    """

    is_sliding = False

    def __init__(self, table: KeyTable, room: int) -> None:
        super().__init__()
        self.table = table
        self.room = room
        self._buffers: Buffers = ()
        self._length = 0
        # buffers, length and views once the forward has ended well
        self._new: tuple[Buffers, int, Buffers] | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take dtype and device from the first keys."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new keys and return them with all that this forward may see.

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
        keep = self.table.keep
        if keep is not None and not self._buffers:  # a long prompt: what goes never gets a buffer
            buffers, length = self._select((key_states, value_states), keep), keep.shape[1]
            self._new = buffers, length, _views(buffers, length)
            return key_states, value_states

        length = self._length + key_states.shape[2]
        buffers = tuple(self._extend(index, states, length) for index, states in enumerate((key_states, value_states)))
        has_grown = bool(self._buffers) and buffers[0] is not self._buffers[0]
        if has_grown and not buffers[0].requires_grad:
            self.hold(buffers, self._length)  # what was held stands in them, too, and the old ones can go
        keys, values = _views(buffers, length)
        self._new = buffers, length, (keys, values)
        return keys, values

    def commit(self) -> None:
        """End a forward: the new keys count, and those that no later token can see go."""
        if self._new is None:
            return
        had_keys, keep = bool(self._buffers), self.table.keep
        self._buffers, self._length, (self.keys, self.values) = self._new
        self._new = None
        if keep is not None and had_keys:
            self.hold(self._select((self.keys, self.values), keep), keep.shape[1])

    @property
    def has_new(self) -> bool:
        """Whether a forward has brought new keys that do not count yet."""
        return self._new is not None

    def abort(self) -> None:
        """End a forward that failed: what it wrote does not count."""
        self._new = None

    def _extend(self, index: int, states: torch.Tensor, length: int) -> torch.Tensor:
        """Return a buffer with what is held and `states`, up to `length`."""
        old = self._buffers[index] if self._buffers else None
        if old is not None and states.requires_grad and torch.is_grad_enabled():
            return torch.cat([old[:, :, : self._length], states], dim=2)

        buffer = old
        is_writable = old is not None and (torch.is_inference_mode_enabled() or not old.is_inference())
        if buffer is None or not is_writable or buffer.shape[2] < length:
            buffer = states.new_empty(*states.shape[:2], length + self.room, states.shape[3])
            if old is not None:
                buffer[:, :, : self._length] = old[:, :, : self._length]
        buffer[:, :, self._length : length] = states
        return buffer

    def _select(self, tensors: Buffers, places: torch.Tensor) -> Buffers:
        """Copy the keys and values at some places, (B, K′), into new buffers."""
        number, selected = places.shape[1], []
        for states in tensors:
            buffer = states.new_empty(*states.shape[:2], number + self.room, states.shape[3])
            index = places[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
            buffer[:, :, :number] = states.gather(2, index)
            selected.append(buffer)
        return tuple(selected)

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
        self.hold(self._buffers, self._length - number)

    def keep(self, places: torch.Tensor) -> None:
        """Keep the keys at some places, (B, K′); the others go."""
        if self._buffers:
            self.hold(self._select(_views(self._buffers, self._length), places), places.shape[1])

    def change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Reorder, repeat or select rows."""
        self.hold(tuple(map(change, self._buffers)), self._length)

    def reset(self) -> None:
        """Forget everything."""
        self.hold((), 0)

    def nbytes(self) -> int:
        """Return the memory of keys and values, spare room included."""
        return sum(buffer.untyped_storage().nbytes() for buffer in self._buffers)

    def held(self) -> tuple[Buffers, int]:
        """Return what `hold` takes, to go back to it."""
        return self._buffers, self._length

    def hold(self, buffers: Buffers, length: int) -> None:
        """Hold these buffers' first keys; a forward under way ends."""
        self._buffers, self._length, self._new = buffers, length, None
        self.keys, self.values = _views(buffers, length) if buffers else (None, None)


def shape_of(model_config: PreTrainedConfig) -> list[Any]:
    """Return what tells models apart whose keys do not go together, as far as configurations can."""
    text_config = model_config.get_text_config(decoder=True)
    return [getattr(text_config, name, None) for name in _SHAPE]


def make_layers(
    model_config: PreTrainedConfig,
    layer_rules: dict[int, LayerRules],
    tables: dict[LayerRules, KeyTable],
    room: int,
) -> list[Any]:
    """Make a model's layers: ours for softmax attention, transformers' own for linear attention.

    Raises:
        ValueError: If a layer has both.
    """
    layers: list[Any] = DynamicCache(config=model_config.get_text_config(decoder=True)).layers
    for index, rules in layer_rules.items():
        if isinstance(layers[index], LinearAttentionCacheLayerMixin):
            raise ValueError(
                f"A model of type {model_config.model_type} has softmax attention and a state space in one layer, which an "
                "HSACache cannot hold: read whole texts by forwards with use_cache=False."
            )
        layers[index] = HSACacheLayer(tables[rules], room)
    return layers


def _views(buffers: Buffers, length: int) -> Buffers:
    return tuple(buffer[:, :, :length] for buffer in buffers)
