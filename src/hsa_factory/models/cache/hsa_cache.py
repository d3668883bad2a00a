"""A key/value cache that lets go of keys which HSA can never see again: exact, and as small as what is visible."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils import ModelOutput

from ...attention import AttentionPlan
from ...attention.layer_rules import EffectiveRules
from ...config import HSAConfig
from ...semantics import SemanticType
from ..lookahead import Lookahead
from .incoming import EndedRows, IncomingTypes, check_types, find_real
from .key_table import Keys, KeyTable
from .layer import NO_HSA, HSACacheLayer
from .sequence import SeenTokens
from .tagger import Tagger


_SHAPE = ("model_type", "hidden_size", "num_key_value_heads", "head_dim")  # tells models apart, as far as configs can


@dataclass
class CacheReport(ModelOutput):
    """What a cache holds.

    Attributes:
        seen_tokens: Tokens that the model has read, padding included.
        kept_tokens: Keys that are still held, in the longest row and the layer that holds most.
        bytes: Memory of all keys and values, spare room included.
    """

    seen_tokens: int | None = None
    kept_tokens: int | None = None
    bytes: int | None = None


class HSACache(Cache):
    """A transformers cache for models with HSA, from which keys that no later token can see are dropped.

    What is kept is never changed, so logits and text are those of a cache that keeps everything. `get_seq_length` is
    the number of tokens seen, not kept. Keys go in chunks, each layer by its own rules: HSA's and the model's own
    sliding window; layers outside ``HSAConfig.layers`` keep what the model itself may see.

    `model.generate` makes one, or takes one as ``past_key_values`` to go on where it ended; so does a model's forward,
    whose `semantic_ids` then cover either the new tokens or all of them.

    Args:
        config: The rules; they must be the model's.
        tagger: Types tokens that come without `semantic_ids` (generated ones); None: there must be none.
        evict: False: keep everything, to compare with.
        max_waiting: How many invisible keys of a row may wait for the next chunk.
    """

    def __init__(
        self, config: HSAConfig, tagger: Tagger | None = None, evict: bool = True, max_waiting: int = 256
    ) -> None:
        if not isinstance(config, HSAConfig):
            raise TypeError(f"HSACache needs an HSAConfig, got {type(config).__name__}.")
        if isinstance(max_waiting, bool) or not isinstance(max_waiting, int) or max_waiting < 1:
            raise ValueError(f"HSACache: max_waiting = {max_waiting!r} is not allowed: a whole number ≥ 1.")
        super().__init__(layers=[])
        self.config = config
        self.max_waiting = max_waiting if evict else None
        self.room = max_waiting
        self.tables: dict[tuple[int | None, bool], KeyTable] = {}
        self.layer_keys: dict[int, tuple[int | None, bool]] = {}
        self.rope_deltas: torch.Tensor | None = None  # of M-RoPE models
        self._bound: tuple[Any, Any] = (None, None)
        self._shape: list[Any] = []
        self._incoming = IncomingTypes(tagger)
        self._ends = EndedRows()
        self._forget()

    def _forget(self) -> None:
        self._seen = SeenTokens()
        self._new: Keys | None = None  # of the forward under way; None if they were foreseen
        self._is_open = False
        self._ids: torch.Tensor | None = None
        self._incoming.forget()
        self._ends.forget()

    @property
    def semantic_ids(self) -> torch.Tensor | None:
        """Types of all tokens seen, (B, seen) int64; None before the first."""
        return self._seen.keys.semantic_ids if self._seen else None

    @property
    def attention_mask(self) -> torch.Tensor | None:
        """Which of the tokens seen are real, (B, seen) int64: 1, and 0 for padding; None before the first."""
        return self._seen.keys.is_real.long() if self._seen else None

    @property
    def ended_rows(self) -> torch.Tensor | None:
        """Which rows have read an end token since `expect`, (B,) bool; None: nothing is known of that."""
        return self._ends.ended

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens were seen, padding included; positions go on from there."""
        return len(self._seen)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the length of the sequence after the next forward, and 0. (HSA needs no mask.)"""
        return len(self._seen) + query_length, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a layer's new keys and values and return all that it holds.

        Raises:
            ValueError: If the model has no HSA.
        """
        if not self.layers:
            raise ValueError(NO_HSA)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def report(self) -> CacheReport:
        """Return `seen_tokens`, `kept_tokens` and `bytes`."""
        kept = [int(table.keys.is_real.sum(1).max()) for table in self.tables.values() if len(table)]
        size = sum(layer.nbytes() for layer in self.layers if isinstance(layer, HSACacheLayer))
        return CacheReport(seen_tokens=len(self._seen), kept_tokens=max(kept, default=0), bytes=size)

    # -- one forward ------------------------------------------------------------------------------------------

    def bind(self, model_config: PreTrainedConfig, windows: dict[int, int | None], config: HSAConfig) -> None:
        """Make the layers for a model, or check that they are.

        Args:
            model_config: Of the model.
            windows: The sliding window of each softmax attention layer.
            config: The model's rules.

        Raises:
            ValueError: If the cache was made for other rules or another model.
        """
        if self._bound[0] is config and self._bound[1] is windows:
            return
        if config.attention_rules() != self.config.attention_rules():
            raise ValueError(
                f"This HSACache was made for {self.config.attention_rules()}, but the model attends with "
                f"{config.attention_rules()}: make a new one with HSACache(model's HSAConfig)."
            )
        keys = {
            index: (window, config.layers is not None and index not in config.layers)
            for index, window in windows.items()
        }
        text_config = model_config.get_text_config(decoder=True)
        shape = [getattr(text_config, name, None) for name in _SHAPE]
        if self.layers and (keys != self.layer_keys or shape != self._shape):
            raise ValueError("This HSACache belongs to another model.")
        self._bound, self._shape = (config, windows), shape
        if self.layers:
            return

        self.layer_keys = keys
        self.tables = {
            key: KeyTable(EffectiveRules.of(config, *key), self.max_waiting) for key in dict.fromkeys(keys.values())
        }
        self.layers = DynamicCache(config=text_config).layers  # linear attention has layers of its own
        for index, key in keys.items():
            self.layers[index] = HSACacheLayer(self.tables[key], self.room)

    def expect(self, semantic_ids: torch.Tensor, tagger: Tagger, end_ids: Sequence[int] = ()) -> None:
        """Say which types the next tokens have, and what ends a row.

        Args:
            semantic_ids: (B, n) of the first n tokens of the sequence, those seen included; where they differ from what
                they were seen with, they change (`retype`).
            tagger: For the tokens after them.
            end_ids: Of them those after which a row gets padding until the others have ended, too.

        Raises:
            ValueError: If rows are missing, or a token seen cannot change its type any more.
        """
        if self._seen and semantic_ids.shape[0] != self._seen.rows:
            raise ValueError(f"This HSACache holds {self._seen.rows} rows, but the input has {semantic_ids.shape[0]}.")
        self._retype_seen(semantic_ids)
        self._incoming.expect(semantic_ids, tagger)
        self._ends.expect(end_ids, semantic_ids.shape[1])

    def note_ids(self, input_ids: torch.Tensor) -> None:
        """Remember the tokens of a sequence, (B, …), as far as they have been seen, for `check_ids`."""
        self._ids = input_ids[:, : len(self._seen)]

    def check_ids(self, input_ids: torch.Tensor) -> None:
        """Check that a sequence, (B, L), begins with the tokens noted.

        Raises:
            ValueError: If it is another one.
        """
        if self._ids is None or not self._seen:
            return
        number = min(self._ids.shape[1], len(self._seen))
        differs = (input_ids[:, :number] != self._ids[:, :number]) & self._seen.keys.is_real[:, :number]
        if bool(differs.any()):
            row, place = differs.nonzero()[0].tolist()
            raise ValueError(
                f"input_ids differs from what this HSACache has seen, first at token {place} of row {row}: pass the tokens "
                "that went in and came out, not their text encoded anew; for another conversation make another cache."
            )

    def begin(
        self,
        tokens: torch.Tensor,
        semantic_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        config: HSAConfig,
    ) -> dict[int, AttentionPlan]:
        """Take a forward's new tokens in and plan its attention; `commit` or `abort` ends it.

        Args:
            tokens: (B, Q) input_ids or (B, Q, hidden) embeddings.
            semantic_ids: (B, Q) or, those seen included, (B, seen + Q); None: as was said with `expect`.
            attention_mask: (B, seen + Q), 0 is padding; None: all real.
            config: The model's.

        Returns:
            The plan of each softmax attention layer.

        Raises:
            ValueError: If something does not fit, or types are missing.
        """
        rows, number = tokens.shape[:2]
        if not rows * number:
            raise ValueError(f"There is nothing to read: the input has (batch, length) = {(rows, number)}.")
        self._fit_rows(rows)
        if self._is_open:
            self._check_layers()
        types = self._types_of(tokens, semantic_ids)
        is_real = find_real(tokens, attention_mask, len(self._seen))
        is_real = self._ends.find_real(tokens, is_real, len(self._seen))
        changes, released = self._incoming.news(len(self._seen))
        for change in changes:
            self.retype(*change)

        keys_stay = not any(table.may_drop(number, released) for table in self.tables.values())
        if self._seen and number == 1 and is_real is None and keys_stay:
            plans = self._plan_foreseen(types, tokens.device, config, released)
        else:
            plans = self._plan(check_types(types).to(tokens.device), is_real, config, released)
        self._is_open = True
        return {index: plans[key] for index, key in self.layer_keys.items()}

    def _plan(
        self, types: torch.Tensor, is_real: torch.Tensor | None, config: HSAConfig, released: int
    ) -> dict[tuple[int | None, bool], AttentionPlan]:
        """Plan any forward."""
        number = types.shape[1]
        is_real = torch.ones_like(types, dtype=torch.bool) if is_real is None else is_real
        before = self._seen.last_positions if self._seen else -1
        self._new = Keys(before + is_real.long().cumsum(1), types, is_real)
        last = self._new.positions[:, -1]
        held_from = self._incoming.held_from(last, len(self._seen) + number)
        plans = {}
        for key, table in self.tables.items():
            table.begin(self._new, last + 1, held_from, released)
            keys = table.new_keys
            plans[key] = (
                AttentionPlan.of_cached_keys(keys.semantic_ids, config, keys.is_real, keys.positions, number)
                if self._seen
                else AttentionPlan(keys.semantic_ids, config, keys.is_real)
            )
        return plans

    def _plan_foreseen(
        self, types: torch.Tensor, device: torch.device, config: HSAConfig, released: int
    ) -> dict[tuple[int | None, bool], AttentionPlan]:
        """Plan a forward of one token a row, none of them padding, after which no key goes."""
        ahead = self._seen.ahead
        if ahead is None or not ahead.fits(types, config):
            types = check_types(types).to(device)
            ahead = Lookahead(self._seen.last_positions, types, self.tables, config, before=ahead)
            self._seen.ahead = ahead
        self._new = None
        for table in self.tables.values():
            table.begin_foreseen(released)
        return ahead.plans()

    def commit(self) -> None:
        """End a forward."""
        for table in self.tables.values():
            table.commit()
        if self._new is None:
            self._seen.ahead.taken += 1
        else:
            self._seen.append(self._new)
        self._new, self._is_open = None, False

    def abort(self) -> None:
        """End a forward that failed."""
        for table in self.tables.values():
            table.abort()
        self._new = None

    def keep_rope_deltas(self, deltas: torch.Tensor | None) -> None:
        """Remember what an M-RoPE model would forget at its next conversation: (rows, 1), or None."""
        if deltas is self.rope_deltas:
            return
        if deltas is not None and self._seen:
            deltas = deltas.repeat_interleave(self._seen.rows // deltas.shape[0], dim=0)
        self.rope_deltas = deltas

    # -- types ------------------------------------------------------------------------------------------------

    def retype(self, row: int, start: int, stop: int, semantic_type: int | str) -> None:
        """Change the type of tokens that have been seen; their keys stay as they are.

        Args:
            row: Of the batch.
            start: Place of the first token, as in `input_ids`.
            stop: After the last one.
            semantic_type: The new type.

        Raises:
            ValueError: If a key is gone that could be seen with the new type.
        """
        if not self._seen:
            raise ValueError("This HSACache has seen no token whose type could change.")
        semantic_type, seen = SemanticType.parse(semantic_type), self._seen.keys
        semantic_ids = seen.semantic_ids.clone()
        semantic_ids[row, start:stop] = int(semantic_type)
        positions = seen.positions[row, start:stop][seen.is_real[row, start:stop]]
        if len(positions):
            for table in self.tables.values():
                if not table.retype(row, positions, int(semantic_type), seen.positions[row, -1] + 1):
                    raise ValueError(
                        f"Tokens {start} to {stop} of row {row} cannot become {semantic_type.name} any "
                        "more: their keys are gone."
                    )
        self._seen.retype(semantic_ids)

    def _retype_seen(self, semantic_ids: torch.Tensor) -> None:
        """Take over what all types, (B, seen + …), say of the tokens seen."""
        if not self._seen:
            return
        seen, number = self._seen.keys, len(self._seen)
        differs = (seen.semantic_ids != semantic_ids[:, :number]) & seen.is_real
        for row in differs.any(dim=1).nonzero().flatten().tolist():
            wanted = torch.where(differs[row], semantic_ids[row, :number], -1)
            values, lengths = wanted.unique_consecutive(return_counts=True)
            stops = lengths.cumsum(0).tolist()
            for value, length, stop in zip(values.tolist(), lengths.tolist(), stops):
                if value >= 0:
                    self.retype(row, stop - length, stop, value)

    def _types_of(self, tokens: torch.Tensor, semantic_ids: torch.Tensor | None) -> torch.Tensor:
        """Return the new tokens' types, (B, Q); where all types are given, take over what they say of those seen."""
        if semantic_ids is None:
            return self._incoming.of(tokens, len(self._seen))
        rows, number, seen = *tokens.shape[:2], len(self._seen)
        if semantic_ids.shape == (rows, seen + number):
            self._retype_seen(semantic_ids)
        elif semantic_ids.shape != (rows, number):
            cached = f", {seen} of them cached" if seen else ""
            raise ValueError(
                f"semantic_ids has shape {tuple(semantic_ids.shape)}, but the input has (batch, length) = "
                f"{(rows, seen + number)}{cached}."
            )
        return semantic_ids[:, -number:].long()

    # -- rows and lengths -------------------------------------------------------------------------------------

    def _fit_rows(self, rows: int) -> None:
        if not self._seen or rows == self._seen.rows:
            return
        if rows % self._seen.rows:
            raise ValueError(f"This HSACache holds {self._seen.rows} rows, but the input has {rows}.")
        self.batch_repeat_interleave(rows // self._seen.rows)

    def _check_layers(self) -> None:
        """Refuse to go on after a forward that did not end, if a layer took part in it (of linear ones nobody knows)."""
        for layer in self.layers:
            if not isinstance(layer, HSACacheLayer) or layer.get_seq_length() != len(layer.table):
                raise ValueError("A forward with this HSACache failed half-way, so it cannot be used any more.")

    def _change(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._seen.change(change)
        for table in self.tables.values():
            table.change(change)
        for layer in self.layers:
            if isinstance(layer, HSACacheLayer):
                layer.change(change)
        if self.rope_deltas is not None:
            self.rope_deltas = change(self.rope_deltas)
        if self._ids is not None:
            self._ids = change(self._ids)
        self._incoming.change(change)
        self._ends.change(change)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Let each row go on from another one, as beam search does. `beam_idx`: (B,)."""
        self._change(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))
        for layer in self._other_layers():
            layer.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        if self._other_layers() and self._seen:
            rows = torch.arange(self._seen.rows).repeat_interleave(repeats)
            return self.reorder_cache(rows)
        self._change(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows."""
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        self.reorder_cache(indices)

    def _other_layers(self) -> list[Any]:
        return [layer for layer in self.layers if not isinstance(layer, HSACacheLayer)]

    def crop(self, max_length: int) -> None:
        """Forget the last tokens.

        Args:
            max_length: How many to remember; negative: how many to forget.

        Raises:
            ValueError: If keys have been dropped: those that the remembered tokens would need may be among them.
        """
        number = -max_length if max_length < 0 else len(self._seen) - max_length
        if number <= 0:
            return
        if self._other_layers():
            raise ValueError("A cache of linear attention cannot be cropped: its state has no way back.")
        if any(len(table) < len(self._seen) for table in self.tables.values()):
            raise ValueError(
                "This HSACache cannot be cropped: keys that the remaining tokens would see are gone. Assisted and "
                "speculative decoding need HSACache(config, evict=False)."
            )
        self._seen.change(lambda tensor: tensor[:, :-number])
        for table in self.tables.values():
            table.change(lambda tensor: tensor[:, :-number])
        for layer in self.layers:
            layer.crop(number)

    def reset(self) -> None:
        """Forget everything."""
        for table in self.tables.values():
            table.__init__(table.rules, table.max_waiting)
        super().reset()
        self._forget()
