"""The worker is told of every request that comes, moves and goes: a logits processor that changes no logit."""

import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from ..attention.layer_rules import LayerRules
from .server.admission import check_admission
from .serving_config import TaggerMaker, serving_config
from .tokens import TokenTypes
from .types import check_fields, types_of


class Row:
    """A request in the worker's batch: its tokens, and those of their keys that a later one may still see.

    Args:
        tokens: What is known of its tokens.
    """

    def __init__(self, tokens: TokenTypes) -> None:
        self.tokens = tokens
        self._forget()

    def _forget(self) -> None:
        self._visible = np.empty(0, np.int64)
        self._known = 0  # tokens that were looked at
        self._events = len(self.tokens.events)

    def visible(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the places of the keys, ascending, that queries [start, stop) may see; never asked with a lower start."""
        if len(self.tokens.events) != self._events:  # a changed type may bring keys back
            self._forget()
        last = self.tokens.last
        if self._known < stop:
            self._visible = np.concatenate([self._visible, np.arange(self._known, stop)])
            self._known = stop
        self._visible = self._visible[last[self._visible] >= start]
        return self._visible


class Rows:
    """The requests in the batch of a worker, by their place in it.

    Attributes:
        rules: What holds in the model's layers, each once; the model says so when it is made.
    """

    def __init__(self) -> None:
        self.rules: tuple[LayerRules, ...] = ()
        self.by_index: dict[int, Row] = {}

    def get(self, index: int) -> Row | None:
        """Return the request at a place; None: a dry run of vLLM's, without requests."""
        return self.by_index.get(index)

    def move(self, source: int, target: int, is_swap: bool) -> None:
        """Let a request take another place; where two swap, the other one takes its place."""
        moved, other = self.by_index.pop(source, None), self.by_index.pop(target, None)
        if moved is not None:
            self.by_index[target] = moved
        if is_swap and other is not None:
            self.by_index[source] = other


_rows: dict[int, tuple["weakref.ref[VllmConfig]", Rows]] = {}


def rows_of(vllm_config: VllmConfig) -> Rows:
    """Return the rows of the worker that has this configuration, which its parts share."""
    for key, (owner, _) in list(_rows.items()):
        if owner() is None:
            del _rows[key]
    return _rows.setdefault(id(vllm_config), (weakref.ref(vllm_config), Rows()))[1]


class TypeListener(LogitsProcessor):
    """Keeps the types of the requests in a worker's batch up to date, before each forward."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse what is wrong whatever the prompt is; called where a request comes in.

        Raises:
            InvalidTypes: With the reason.
        """
        fields = sampling_params.extra_args or {}
        check_admission(fields)
        check_fields(fields)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._config = serving_config(vllm_config)
        if self._config is None:
            return
        self._rows = rows_of(vllm_config)
        self._make_tagger = TaggerMaker(vllm_config, self._config)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits as they are."""
        return logits

    def is_argmax_invariant(self) -> bool:
        """Return True: greedy sampling need not ask."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Take over what vLLM says of its batch: removed, added, moved, in this order."""
        if self._config is None or batch_update is None:
            return
        rows = self._rows
        for index in batch_update.removed:
            rows.by_index.pop(index, None)
        for index, params, prompt_ids, output_ids in batch_update.added:
            rows.by_index[index] = self._row(params, prompt_ids, output_ids)
        for source, target, direction in batch_update.moved:
            rows.move(source, target, direction is MoveDirectionality.SWAP)

    def _row(self, params: SamplingParams, prompt_ids: Any, output_ids: list[int]) -> Row:
        assert self._config is not None, "rows are of models with HSA"
        prompt = types_of(params.extra_args, len(prompt_ids), self._config)
        return Row(TokenTypes(prompt, self._make_tagger(prompt), self._rows.rules, output_ids))
