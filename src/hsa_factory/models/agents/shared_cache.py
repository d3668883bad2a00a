"""The rows of a batch on one cache: what they have to read goes through the model together."""

import inspect
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ..cache import HSACache
from ..forward_pass import HSAState
from ..rope_positions import has_mrope, text_positions
from ..text_model import unwrap
from ..transformers_versions import CACHE
from .new_images import NewImages
from .reply_tagger import ReplyTagger
from .row import Row


_TOKENS = 8192  # that go through the model together, of all rows
_COLUMNS = 32  # of them in a row, at least


class SharedCache:
    """Reads the rows' tokens into an `HSACache`; positions count a row's own.

    Args:
        model: With HSA on.
        state: HSA's state.
        max_waiting: As `HSACache`; padding between tokens counts, too.
        filler: What stands at padding.

    Attributes:
        cache: The cache.
        rows: Whose keys it holds, in its order.
        forwards: How many there were.
    """

    def __init__(self, model: PreTrainedModel, state: HSAState, max_waiting: int, filler: int) -> None:
        self.model, self.cache = model, HSACache(state.config, max_waiting=max_waiting)
        self.rows: list[Row] = []
        self.forwards = 0
        self._config, self._filler, self._max_waiting = state.config, filler, max_waiting
        inner = unwrap(model)  # PEFT's has no names of its own
        self._entry, known = inner.base_model, inspect.signature(inner.forward).parameters
        self._last_logits = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self._takes_positions = "position_ids" in known
        self._mask = torch.ones(0, 0, dtype=torch.long)

    def arrange(self, rows: Sequence[Row]) -> None:
        """Let the cache hold these rows: those that are gone leave it, and new ones come, at best in their places."""
        wanted, places = {id(row) for row in rows}, {id(row): place for place, row in enumerate(self.rows)}
        coming = [row for row in rows if id(row) not in places]
        order: list[Row] = []
        for row in self.rows:
            if id(row) in wanted:
                order.append(row)
            elif coming:
                order.append(coming.pop(0))
        order += coming
        if len(order) != len(self.rows) or any(new is not old for new, old in zip(order, self.rows)):
            self.cache.select_rows([places.get(id(row)) for row in order])
            self.rows = order
        self.cache.drop_padding(self._max_waiting)

    def forget(self) -> None:
        """Hold no row."""
        self.cache.reset()
        self.rows = []

    def read(self, tagger: ReplyTagger, steps: int) -> torch.Tensor:
        """Read what the rows have not read.

        Args:
            tagger: For the tokens that are generated after it.
            steps: How many of them, at most.

        Returns:
            (B, V), the logits of what follows, of no use for a row that had nothing to read.
        """
        seen, number = self.cache.get_seq_length(), max(len(row.ids) - row.read for row in self.rows)
        device = self.model.device
        ids = self._new("ids", number, self._filler).to(device)
        types, turns = self._new("types", number, 0).to(device), None
        is_real = torch.tensor(
            [[0] * (number - len(row.ids) + row.read) + [1] * (len(row.ids) - row.read) for row in self.rows]
        )
        if self.cache.semantic_ids is not None:
            types = torch.cat([self.cache.semantic_ids, types], dim=1)
        if self._config.has_turns:
            turns = self._new("turns", number, 0).to(device)
            if self.cache.turn_ids is not None:
                turns = torch.cat([self.cache.turn_ids, turns], dim=1)
        self.cache.expect(types, tagger, (), turns)
        self._mask = torch.ones(len(self.rows), seen + number + steps, dtype=torch.long, device=device)
        self._mask[:, seen : seen + number] = is_real.to(device)
        if self.cache.attention_mask is not None:
            self._mask[:, :seen] = self.cache.attention_mask

        step, start = max(_TOKENS // len(self.rows), _COLUMNS), 0
        images = NewImages(self._entry, self.rows, ids) if any(row.images for row in self.rows) else None
        logits = torch.empty(0)
        inputs: dict[str, torch.Tensor] = {}
        while start < number:
            stop = min(start + step, number)
            if images:
                stop = images.cut(start, stop)
                inputs = images.inputs(start, stop)
            logits = self._forward(ids[:, start:stop], is_real[:, start:stop].any(dim=1).tolist(), **inputs)
            start = stop
        for row in self.rows:
            row.read = len(row.ids)
        return logits

    def step(self, tokens: Sequence[int | None]) -> torch.Tensor:
        """Read one token a row; None: none. Returns the logits of what follows, (B, V)."""
        column = torch.tensor(
            [[self._filler if token is None else token] for token in tokens], device=self._mask.device
        )
        reads = [token is not None for token in tokens]
        self._mask[:, self.cache.get_seq_length()] = torch.tensor(reads, device=self._mask.device)
        logits = self._forward(column, reads)
        for row, token in zip(self.rows, tokens):
            row.read += token is not None
        return logits

    def retype(self, rows: Sequence[Row]) -> None:
        """Give the tokens that some rows have read the types that stand in their histories.

        Raises:
            ValueError: If a key is gone that could be seen with its new type; names the row.
        """
        held = {id(row): place for place, row in enumerate(self.rows)}
        chosen = [row for row in rows if id(row) in held]
        if not chosen or self.cache.semantic_ids is None or self.cache.attention_mask is None:
            return
        types, is_real = self.cache.semantic_ids.clone(), self.cache.attention_mask != 0
        for row in chosen:
            place = held[id(row)]
            types[place, is_real[place]] = torch.tensor(row.types[: row.read], device=types.device)
        try:
            self.cache.retype_all(types)
        except ValueError as error:
            numbers = ", ".join(str(row.number) for row in chosen)
            raise ValueError(f"row {numbers}: {error}") from None

    def _new(self, name: str, number: int, filler: int) -> torch.Tensor:
        """Return the rows' tokens not read yet (or their types, or turns), (B, `number`), padded on the left."""
        lines = [getattr(row, name)[row.read :] for row in self.rows]
        return torch.tensor([[filler] * (number - len(line)) + line for line in lines])

    @torch.no_grad()
    def _forward(self, ids: torch.Tensor, reads: Sequence[bool], **inputs: torch.Tensor) -> torch.Tensor:
        """Read tokens, (B, n). `reads`: which rows have any; `inputs`: what images need, positions included."""
        seen = self.cache.get_seq_length()
        mask = self._mask[:, : seen + ids.shape[1]]
        if not inputs and not seen and self._takes_positions:  # the model's own would count padding
            positions = text_positions(mask)
            inputs["position_ids"] = positions.expand(3, -1, -1) if has_mrope(self._entry) else positions
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            use_cache=True,
            **{CACHE: self.cache},
            **self._last_logits,
            **inputs,
        )
        self.forwards += 1
        held, visible = self.cache.count_keys()
        for row, reads_now, keys, seen_keys in zip(self.rows, reads, held.tolist(), visible.tolist()):
            if reads_now:
                row.usage.note(keys, seen_keys)
        logits: torch.Tensor = output.logits[:, -1]
        return logits
