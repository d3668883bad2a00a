"""The attention plan: what the tokens of a forward pass are. What holds between them is a layer's `LayerRules`."""

from collections.abc import Callable
from typing import TypeVar

import torch

from .by_type import by_type
from .documents import positions_in_documents
from .inputs import check_ids, check_turns, look_at_rows, missing_turns, number_documents
from .last_seen import last_seen
from .layer_rules import LayerRules


T = TypeVar("T")

_CELLS = 2**18  # of the dense bias filled at a time, a row of the batch: the temporaries stay in the cache


class AttentionPlan:
    """Types, positions and documents of one forward pass, built once and shared by all layers and the backward.

    It is a plain class on purpose: FSDP copies dataclasses (and casts what they hold) at every wrapped layer. Nothing is
    checked here: `from_inputs` makes a plan of what a user gives.

    Legend: B batch, L key length, Q query length (Q = L without a key/value cache; the queries are the last Q keys).

    Args:
        semantic_ids: (B, L) int64, the `SemanticType` of each key.
        document_ids: (B, L) int64 or bool; 0 is padding, so that only equal numbers above 0 see each other.
        positions: (B, L) int64, the token's place in its own document, padding not counted; up to 2²⁴.
        query_length: Q.
        has_gaps: Whether keys between those of the plan may be missing, as a cache leaves them.
        has_padding: Whether a key is padding; None: look.
        has_clean_padding: Whether keys and values hold zeros at padding, as in a cache; else `zero_padding` sees to it.
        is_packed: Whether a row holds more than one document; None: look when it matters.
        turn_ids: (B, L) integers, the number of each key's turn, which never falls within a document; not read at
            padding. None: not known, as rules without turns allow.
        types: Those that there are; None: not known.
        most_turns: For how many turns a row goes on after its first at most; None: not known.

    Attributes:
        is_padding: (B, L) bool, or None if there is none.
    """

    def __init__(
        self,
        semantic_ids: torch.Tensor,
        document_ids: torch.Tensor,
        positions: torch.Tensor,
        query_length: int,
        has_gaps: bool = False,
        has_padding: bool | None = None,
        has_clean_padding: bool = False,
        is_packed: bool | None = None,
        turn_ids: torch.Tensor | None = None,
        types: tuple[int, ...] | None = None,
        most_turns: int | None = None,
    ) -> None:
        self.semantic_ids, self.document_ids, self.positions = semantic_ids, document_ids, positions
        self.turn_ids, self.types, self.most_turns = turn_ids, types, most_turns
        self.batch_size, self.key_length = semantic_ids.shape
        self.query_length, self.has_gaps = query_length, has_gaps
        self._has_clean_padding = has_clean_padding
        self.is_padding: torch.Tensor | None = None
        if has_padding is not False:
            is_padding = document_ids == 0
            self.is_padding = is_padding if has_padding or bool(is_padding.any()) else None
        self._packed = is_packed
        self._bias: dict[tuple[torch.dtype, LayerRules], torch.Tensor] = {}
        self._made: dict[tuple[object, LayerRules], object] = {}

    @classmethod
    def from_inputs(
        cls,
        semantic_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        query_length: int | None = None,
        positions: torch.Tensor | None = None,
        turn_ids: torch.Tensor | None = None,
    ) -> "AttentionPlan":
        """Check what a user gives and make the plan of it.

        Args:
            semantic_ids: (B, L) integers, the `SemanticType` of each key.
            attention_mask: (B, L); 0 or False is padding, everything else is real. Values above 1 number the documents
                of a packed row (1, 1, 2, 2, …). None: no padding.
            document_ids: (B, L) integers that number the documents of a packed row; takes the place of the numbers in
                `attention_mask`, whose zeros still mark padding. None: taken from `attention_mask`.
            query_length: Q; None: L.
            positions: (B, L) integers, each key's place in its document, going up within it: for keys with gaps between
                them, as a cache leaves them. None: counted.
            turn_ids: (B, L) integers, how many replies are over before the message of each key; they may start anywhere
                and skip, but never fall within a document. None: not known, as rules without turns allow.

        Raises:
            ValueError: If shapes, devices or types disagree, a type is not 0, 1 or 2, or turn numbers fall.
        """
        check_ids("semantic_ids", semantic_ids, None)
        length = semantic_ids.shape[1]
        query_length = length if query_length is None else query_length
        if not 0 <= query_length <= length:
            raise ValueError(f"query_length {query_length} does not fit {length} semantic_ids.")

        types, documents = semantic_ids.long(), number_documents(semantic_ids, attention_mask, document_ids)
        rows = look_at_rows(types, None if attention_mask is None and document_ids is None else documents)
        turns, most_turns = (None, None) if turn_ids is None else check_turns(turn_ids, documents, rows.are_whole)
        has_gaps = positions is not None
        if positions is not None:
            check_ids("positions", positions, semantic_ids)
        elif rows.are_whole:
            positions = torch.arange(length, device=types.device).expand_as(types).contiguous()
        else:
            positions = positions_in_documents(documents)
        plan = cls(
            types,
            documents,
            positions.long(),
            query_length,
            has_gaps,
            rows.have_padding,
            is_packed=False if rows.are_whole else None,
            turn_ids=turns,
            types=rows.types,
            most_turns=most_turns,
        )
        if has_gaps and plan.has_packed_rows():
            raise ValueError("positions go with rows of one document, not with packed rows.")
        return plan

    @property
    def has_whole_rows(self) -> bool:
        """Whether each row is known to be one document without padding."""
        return self.is_padding is None and self._packed is False

    @property
    def device(self) -> torch.device:
        """Where the plan's tensors lie."""
        return self.semantic_ids.device

    def has_packed_rows(self) -> bool:
        """Whether a row holds more than one document."""
        if self._packed is None:
            highest = self.document_ids.amax(dim=1, keepdim=True) if self.document_ids.numel() else self.document_ids
            self._packed = bool(((self.document_ids != highest) & (self.document_ids != 0)).any())
        return self._packed

    def check(self, query: torch.Tensor, key: torch.Tensor) -> None:
        """Refuse tensors the plan was not built for.

        Args:
            query: (B, H, Q, D).
            key: (B, Hkv, L, D).

        Raises:
            ValueError: If the batch size, a length or the device differs.
        """
        expected = (self.batch_size, self.query_length, self.key_length)
        actual = (query.shape[0], query.shape[2], key.shape[2])
        if actual != expected:
            raise ValueError(
                "The attention plan was built for (batch, query length, key length) = "
                f"{expected}, but the attention got {actual}: semantic_ids must cover every key, cached ones included."
            )
        if query.device != self.device:
            raise ValueError(f"semantic_ids are on {self.device}, the attention runs on {query.device}.")

    def once(self, make: "Callable[[AttentionPlan, LayerRules], T]", rules: LayerRules) -> T:
        """Return ``make(plan, rules)``, made on the first call and kept for the other layers with these rules."""
        key = (make, rules)
        if key not in self._made:
            self._made[key] = make(self, rules)
        return self._made[key]  # type: ignore[return-value]

    def zero_padding(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Replace what stands at padding by zeros, so that neither NaN nor a gradient passes. Free without padding.

        Args:
            query: (B, H, Q, D).
            key: (B, Hkv, L, D).
            value: (B, Hkv, L, E).
        """
        if self.is_padding is None:
            return query, key, value

        padded_keys = self.is_padding[:, None, :, None]
        padded_queries = padded_keys[:, :, self.key_length - self.query_length :]
        query = query.masked_fill(padded_queries, 0)
        if self._has_clean_padding:
            return query, key, value
        return query, key.masked_fill(padded_keys, 0), value.masked_fill(padded_keys, 0)

    def dense_bias(self, dtype: torch.dtype, rules: LayerRules) -> torch.Tensor:
        """Return the bias to add to the logits, built on the first call and kept for the other layers.

        Args:
            dtype: Of the result.
            rules: Of the layer.

        Returns:
            (B, 1, Q, L): −decay·d where the key is visible, −inf where not. Every row sees at least itself, so
            that padded rows stay finite. Costs O(B·Q·L) memory.
        """
        key = (dtype, rules)
        if key not in self._bias:
            if self.query_length == 1:
                bias = self._bias_of_one(rules).to(dtype)[:, None]
            else:
                shape = (self.batch_size, 1, self.query_length, self.key_length)
                bias = torch.empty(shape, dtype=dtype, device=self.device)
                step = max(1, _CELLS // max(self.key_length, 1))
                for start in range(0, self.query_length, step):
                    stop = min(start + step, self.query_length)
                    bias[:, 0, start:stop] = self._bias_rows(start, stop, rules)
            self._bias[key] = bias

        return self._bias[key]

    def turns(self, rules: LayerRules) -> torch.Tensor | None:
        """Return the turn numbers (B, L) if the rules need them.

        Raises:
            ValueError: If they do, and there are none.
        """
        if not rules.has_turns:
            return None
        if self.turn_ids is None:
            raise missing_turns(rules.turns)
        return self.turn_ids

    def last_seen(self, rules: LayerRules) -> torch.Tensor:
        """Return (B, L) int64, the last position of its document that sees each key; −1 at padding.

        It is made once for all layers with these rules. `hide` is left out.
        """
        return self.once(_last_seen, rules)

    def is_causal(self, rules: LayerRules) -> bool:
        """Whether the rules come to plain causal attention: one document a row, no padding, no bias, no limit.

        Where types and turns are known it is said without a look at the tokens, for which the CPU would wait: then a limit
        counts that would take nothing away only because of where tokens stand.
        """
        return self.once(_is_causal, rules)

    def _bias_of_one(self, rules: LayerRules) -> torch.Tensor:
        """Return (B, 1, L) float32 for the only query, which stands last: in decoding, a step's own cost."""
        types, positions, turns = self.semantic_ids, self.positions, self.turns(rules)
        limits = [*zip(rules.decays, rules.window_reach, rules.turn_reach)]
        table = torch.tensor(limits, dtype=torch.float32, device=self.device)
        decay, window, turn_reach = torch.nn.functional.embedding(types, table).unbind(-1)
        ahead = positions - positions[:, -1:]
        hidden = -ahead > window
        if turns is not None:
            hidden &= turns[:, -1:].long() - turns > turn_reach
            hidden |= -ahead > rules.sliding_reach
        if self.is_padding is not None or self.has_packed_rows():
            hidden |= self.document_ids[:, -1:] != self.document_ids
        for query_type, key_type in rules.hide:
            hidden |= (types[:, -1:] == query_type) & (types == key_type)
        bias = (decay * ahead).masked_fill_(hidden, float("-inf"))
        if rules.hide or self.is_padding is not None:
            bias[:, -1] = 0.0  # a token sees itself
        return bias[:, None]

    def _bias_rows(self, start: int, stop: int, rules: LayerRules) -> torch.Tensor:
        """Return (B, rows, L) float32 for queries `start` to `stop`."""
        offset = self.key_length - self.query_length
        rows = slice(offset + start, offset + stop)
        types, positions = self.semantic_ids, self.positions.float()
        in_window = positions + torch.tensor(rules.window_reach, device=self.device)[types]  # for queries up to there
        queries, keys = positions[:, rows, None], positions[:, None, :]

        bias = keys - queries
        hidden = queries > in_window[:, None, :]
        turns = self.turns(rules)
        if turns is not None:
            in_turns = turns + torch.tensor(rules.turn_reach, device=self.device)[types]
            hidden &= turns[:, rows, None] > in_turns[:, None, :]
            hidden |= queries > keys + rules.sliding_reach
        hidden |= bias > 0
        if self.is_padding is not None:
            hidden |= self.is_padding[:, None, :]
        bias.mul_(torch.tensor(rules.decays, device=self.device)[types][:, None, :])
        if self.is_padding is not None or self.has_packed_rows():
            hidden |= self.document_ids[:, rows, None] != self.document_ids[:, None, :]
        for query_type, key_type in rules.hide:
            hidden |= (types[:, rows, None] == query_type) & (types == key_type)[:, None, :]

        bias.masked_fill_(hidden, float("-inf"))
        bias[:, :, rows].diagonal(dim1=1, dim2=2).fill_(0.0)  # a token sees itself
        return bias


def _is_causal(plan: AttentionPlan, rules: LayerRules) -> bool:
    if plan.query_length != plan.key_length or plan.has_gaps or plan.is_padding is not None or rules.hide:
        return False
    if any(rules.decays[kind] for kind in plan.types or ()):
        return False
    if plan.types is not None and plan.has_whole_rows and (plan.most_turns is not None or not rules.has_turns):
        farthest = plan.key_length - 1
        in_turns = [reach >= (plan.most_turns or 0) for reach in rules.turn_reach]
        in_windows = [reach >= farthest for reach in rules.window_reach]
        all_seen = all(in_windows[kind] or in_turns[kind] for kind in plan.types)
        return all_seen and rules.sliding_reach >= farthest
    free = [decay == 0 for decay in rules.decays]
    all_free = by_type(plan.semantic_ids, free, torch.bool).all()
    all_free &= (plan.last_seen(rules) == plan.key_length - 1).all()
    return bool(all_free) and not plan.has_packed_rows()


def _last_seen(plan: AttentionPlan, rules: LayerRules) -> torch.Tensor:
    turns, is_whole = plan.turns(rules), plan.has_whole_rows
    return last_seen(plan.semantic_ids, plan.document_ids, plan.positions, turns, rules, is_whole)
