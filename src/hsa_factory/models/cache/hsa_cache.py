"""A key/value cache that lets go of keys which HSA can never see again: exact, and as small as what is visible."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig

from ...attention import AttentionPlan, LayerRules
from ...config import HSAConfig
from ...semantics import SemanticType
from .incoming import EndedRows, IncomingTypes, check_input, check_types, find_real
from .incoming_turns import IncomingTurns
from .key_table import Keys, KeyTable
from .layer import HALF_WAY, NO_HSA, NOT_HANDED_ON, make_layers, shape_of
from .report import CacheReport
from .rows import CacheOfRows, repeating
from .sequence import SeenTokens, retype
from .snapshot import Snapshot
from .tagger import Settled, Tagger


class HSACache(CacheOfRows):
    """A transformers cache for models with HSA, from which keys that no later token can see are dropped.

    What is kept is never changed, so logits and text are those of a cache that keeps everything. `get_seq_length` is
    the number of tokens seen, not kept. Keys go in chunks, each layer by its own rules: HSA's and the model's own
    sliding window; layers outside ``HSAConfig.layers`` keep what the model itself may see. A key that is seen for some
    turns goes once a token of a later one has come. A forward that is refused or fails changes nothing.

    `model.generate` makes one, or takes one as ``past_key_values`` to go on where it ended; so does a model's forward,
    whose `semantic_ids` then cover either the new tokens or all of them.

    Args:
        config: The rules; they must be the model's.
        tagger: Types tokens that come without `semantic_ids` (generated ones); None: there must be none.
        evict: False: keep everything, to compare with.
        max_waiting: How many invisible keys of a row may wait for the next chunk.

    Example:
        >>> cache = HSACache(HSAConfig(noise_window=50))
        >>> model(input_ids=ids, semantic_ids=types, past_key_values=cache)  # (1, 3000), 100 GLOBAL, the rest NOISE
        >>> cache.report()  # 100 GLOBAL keys and the last 50 tokens
        CacheReport(seen_tokens=3000, kept_tokens=150, bytes=…)
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
        self.tables = {}
        self.layer_rules: dict[int, LayerRules] = {}
        self._bound_to: dict[int, LayerRules] | None = None
        self._shape: list[Any] = []
        self._incoming = IncomingTypes(tagger)
        self._turns = IncomingTurns(config)
        self._ends = EndedRows()
        self._forget()

    def _forget(self) -> None:
        self._seen = SeenTokens()
        self._new: Keys | None = None  # of the forward under way
        self._before: Snapshot | None = None  # the forward under way
        self._is_broken = False
        self._rope_positions: torch.Tensor | None = None  # of the forward under way, as its text model gets them
        self._has_padding = True
        self._incoming.forget()
        self._turns.forget()
        self._ends.forget()

    @property
    def semantic_ids(self) -> torch.Tensor | None:
        """Types of all tokens seen, (B, seen) int64; None before the first."""
        return self._seen.keys.semantic_ids if len(self._seen) else None

    @property
    def turn_ids(self) -> torch.Tensor | None:
        """Turn numbers of all tokens seen, (B, seen) int64, 0 at padding; None: there are none."""
        turns = self._seen.keys.turns if len(self._seen) else None
        return None if turns is None else turns.masked_fill(~self._seen.keys.is_real, 0)

    @property
    def attention_mask(self) -> torch.Tensor | None:
        """Which of the tokens seen are real, (B, seen) int64: 1, and 0 for padding; None before the first."""
        return self._seen.keys.is_real.long() if len(self._seen) else None

    @property
    def rows(self) -> int:
        """B; 0 before the first token."""
        return self._seen.rows

    @property
    def ended_rows(self) -> torch.Tensor | None:
        """Which rows have read an end token since `expect`, (B,) bool; None: nothing is known of that."""
        return self._ends.ended

    @property
    def next_rope_positions(self) -> torch.Tensor | None:
        """(B, 1) int64, the position of the model's rotary embedding at which each row goes on; None before the first."""
        return self._seen.next_rope_positions

    @property
    def rope_deltas(self) -> torch.Tensor | None:
        """(B, 1) int64, how far that lies beyond the number of real tokens, as M-RoPE models say it; None before the first."""
        following = self._seen.next_rope_positions
        return None if following is None else following - self._seen.last_positions - 1

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
        return CacheReport.of(len(self._seen), self.tables.values(), self._own_layers())

    def bind(self, model_config: PreTrainedConfig, layer_rules: dict[int, LayerRules], config: HSAConfig) -> None:
        """Make the layers for a model, or check that they are.

        Args:
            model_config: Of the model.
            layer_rules: What holds in each softmax attention layer.
            config: The model's rules.

        Raises:
            ValueError: If the cache was made for other rules or another model, or cannot hold what this one needs.
        """
        if self._bound_to is layer_rules:
            return
        if config.attention_rules() != self.config.attention_rules():
            raise ValueError(
                f"This HSACache was made for {self.config.attention_rules()}, but the model attends with "
                f"{config.attention_rules()}: make a new one with HSACache(model's HSAConfig)."
            )
        shape = shape_of(model_config)
        is_same = layer_rules == self.layer_rules and shape == self._shape
        if len(self._seen) and not is_same:
            raise ValueError("This HSACache belongs to another model: make a new one, or empty it with cache.reset().")
        if not (self.layers and is_same):
            tables = {rules: KeyTable(rules, self.max_waiting) for rules in dict.fromkeys(layer_rules.values())}
            self.layers = make_layers(model_config, layer_rules, tables, self.room)
            self.layer_rules, self.tables = dict(layer_rules), tables
        self._bound_to, self._shape = layer_rules, shape

    def expect(
        self,
        semantic_ids: torch.Tensor,
        tagger: Tagger,
        end_ids: Sequence[int] = (),
        turn_ids: torch.Tensor | None = None,
    ) -> None:
        """Say which types the next tokens have, of which turns they are, and what ends a row.

        Args:
            semantic_ids: (B, n) of the first n tokens of the sequence, those seen included; where they differ from what
                they were seen with, they change (`retype`).
            tagger: For the tokens after them.
            end_ids: Of them those after which a row gets padding until the others have ended, too.
            turn_ids: (B, n) integers; the tokens after them go on with their last one's. None: the rules have no turns.

        Raises:
            ValueError: If rows or turns are missing, a token seen cannot change its type any more, or has another turn.
        """
        self.abort()
        if len(self._seen) and semantic_ids.shape[0] != self._seen.rows:
            raise ValueError(
                f"This HSACache holds {self._seen.rows} rows, but the input has {semantic_ids.shape[0]}: pass those rows, or a new cache."
            )
        self._turns.expect(turn_ids, semantic_ids.shape, self._seen)
        self._retype(self._seen.changes_to(semantic_ids))
        self._incoming.expect(semantic_ids, tagger)
        self._ends.expect(end_ids, semantic_ids.shape[1])

    def note_ids(self, input_ids: torch.Tensor) -> None:
        """Remember the tokens of a sequence, (B, …), as far as they have been seen, for `check_ids`."""
        self.abort()
        self._seen.ids = input_ids[:, : len(self._seen)].clone()

    def check_ids(self, input_ids: torch.Tensor) -> None:
        """Check that a sequence, (B, L), begins with the tokens noted.

        Raises:
            ValueError: If it is another one.
        """
        self._seen.check_ids(input_ids)

    @torch.compiler.disable
    def begin(
        self,
        tokens: torch.Tensor,
        semantic_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        turn_ids: torch.Tensor | None = None,
    ) -> dict[int, AttentionPlan]:
        """Take a forward's new tokens in and plan its attention; `commit` or `abort` ends it.

        Args:
            tokens: (B, Q) input_ids or (B, Q, hidden) embeddings.
            semantic_ids: (B, Q) or, those seen included, (B, seen + Q); None: as was said with `expect`.
            attention_mask: (B, seen + Q), 0 is padding; None: all real.
            turn_ids: Integers of the shape of `semantic_ids`; None: the rules have no turns, or as was said with `expect`.

        Returns:
            The plan of each softmax attention layer.

        Raises:
            ValueError: If something does not fit, types or turns are missing, or turns fall. Then nothing has changed.
        """
        self.abort()  # one that an interrupt left open
        if self._is_broken:
            raise ValueError(HALF_WAY)
        rows, number = tokens.shape[:2]
        check_input(rows, number, semantic_ids, len(self._seen), self._seen.rows)
        is_real = find_real(tokens, attention_mask, len(self._seen))

        repeats = rows // self._seen.rows if len(self._seen) else 1
        self._before = self._take_snapshot(with_keys=repeats > 1)
        try:
            if repeats > 1:
                self._change(repeating(repeats))
            turns = self._turns.of(turn_ids, rows, number, self._seen, is_expected=semantic_ids is None)
            if semantic_ids is None:
                types = self._incoming.of(tokens, len(self._seen))
            else:
                types = semantic_ids[:, -number:].to(torch.long, copy=True)
                if semantic_ids.shape[1] > number:
                    self._retype(self._seen.changes_to(semantic_ids))
            types = check_types(types).to(tokens.device)
            is_real = self._ends.find_real(tokens, is_real, len(self._seen))
            changes, released = self._incoming.news(len(self._seen))
            self._retype(changes)
            plans = self._plan(types, is_real, turns, released)
            if repeats > 1:  # last: they have no way back
                self._reorder_others(repeating(repeats)(torch.arange(rows // repeats)))
        except BaseException:
            self.abort()
            raise
        return {index: plans[rules] for index, rules in self.layer_rules.items()}

    def _plan(
        self, types: torch.Tensor, is_real: torch.Tensor | None, turns: torch.Tensor | None, released: int
    ) -> dict[LayerRules, AttentionPlan]:
        """Plan the attention of new tokens: types, which are real, and turns, (B, Q); None: all, and as before."""
        turns, last = None if turns is None else turns.to(types.device), self._seen.last_turns
        self._new = new = self._seen.next_keys(types, is_real, turns)
        now = None if turns is None else new.turns
        has_new_turn = now is not None and last is not None and bool((now[:, -1:] > last).any())
        self._rope_positions, self._has_padding = None, is_real is not None
        held_from = self._incoming.held_from(new.positions[:, -1], len(self._seen) + types.shape[1])
        return {
            rules: table.begin(new, self._has_padding, held_from, released, has_new_turn)
            for rules, table in self.tables.items()
        }

    def _take_snapshot(self, with_keys: bool = False) -> Snapshot:
        parts = (self._seen, self._turns, self._ends, *self.tables.values())
        return Snapshot(parts, self._incoming, self._own_layers() if with_keys else ())

    def _go_back(self, before: Snapshot) -> None:
        if not before.restore():
            self._is_broken = True

    @torch.compiler.disable
    def commit(self) -> None:
        """End a forward.

        Raises:
            ValueError: If the model did not hand the cache to its layers. Then nothing has changed.
        """
        own = self._own_layers()
        if not all(layer.has_new for layer in own):
            self.abort()
            raise ValueError(NOT_HANDED_ON)
        try:
            for layer in own:
                layer.commit()
            for table in self.tables.values():
                table.commit()
            if self._new is not None:
                self._seen.append(self._new, self._rope_positions, self._has_padding)
        except BaseException:  # out of memory, most likely: some layers have ended the forward, others not
            self._is_broken = True
            raise
        finally:
            self._new = self._before = None

    @torch.compiler.disable
    def abort(self) -> None:
        """End a forward that failed, as if it had not begun. (What linear layers have read cannot be taken back.)"""
        if self._before is None:
            return
        before, self._before = self._before, None
        for layer in self._own_layers():
            layer.abort()
        self._go_back(before)
        if self._new is not None and self._other_layers():
            self._is_broken = True
        self._new = None

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Let everything stand as before if a `with` block fails before the cache has taken in a token."""
        self.abort()
        before, seen = self._take_snapshot(), len(self._seen)
        try:
            yield
        except BaseException:
            self.abort()
            if len(self._seen) == seen:
                self._go_back(before)
            raise

    def count_on(self) -> torch.Tensor:
        """Return the rotary positions of text that goes on, (B, Q), for the forward that has begun; padding has none."""
        return self._seen.count_on(self.are_new_real)

    @property
    def are_new_real(self) -> torch.Tensor:
        """Which tokens of the forward that has begun are not padding, (B, Q) bool."""
        assert self._new is not None, "no forward is under way"
        return self._new.is_real

    @torch.compiler.disable
    def note_rope_positions(self, positions: torch.Tensor | None) -> None:
        """Remember where the text model puts the tokens of the forward under way, as `SeenTokens.append` takes it."""
        self._rope_positions = positions

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
        self.abort()
        if not len(self._seen):
            raise ValueError("This HSACache has seen no token whose type could change.")
        self._retype([Settled(row, start, stop, int(SemanticType.parse(semantic_type)))])

    def retype_all(self, semantic_ids: torch.Tensor) -> None:
        """Let all tokens seen have these types, (B, seen) int64; what stands at padding is not read.

        Raises:
            ValueError: As `retype`.
        """
        self.abort()
        self._retype(self._seen.changes_to(semantic_ids))

    def _retype(self, changes: Sequence[Settled]) -> None:
        retype(changes, self._seen, tuple(self.tables.values()))
