"""The worker is told of every request that comes, moves and goes: a logits processor that changes no logit."""

import weakref
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from ..attention.layer_rules import LayerRules
from .server.admission import check_admission
from .serving_config import TaggerMaker, serving_config
from .tokens import TokenTypes
from .types import check_fields, types_of


class Row:
    """A request in the worker's batch.

    Args:
        tokens: What is known of its tokens.

    Attributes:
        kept: What an attention keeps of it from step to step, as long as the request is in the batch. None: nothing yet.
    """

    def __init__(self, tokens: TokenTypes) -> None:
        self.tokens = tokens
        self.kept: Any = None


class MissedRequest(RuntimeError):
    """Tokens were to be computed whose types nobody told."""


class Rows:
    """The requests in the batch of a worker, by their place in it.

    Attributes:
        rules: What holds in the model's layers, each once; the model says so when it is made.
        listener: Who tells of requests: the last one made, should an engine have two.
    """

    def __init__(self) -> None:
        self.rules: tuple[LayerRules, ...] = ()
        self.listener: TypeListener | None = None
        self.by_index: dict[int, Row] = {}

    def check(self, rules: tuple[LayerRules, ...]) -> None:
        """Check, at the start, that somebody will tell of requests, and by the rules of the layers.

        Args:
            rules: Of the layers whose cache it is.

        Raises:
            ValueError: If not; it says what to do.
        """
        if self.listener is None:
            raise ValueError(
                "HSA's logits processor is not among the engine's, so that no request would have types: something took it out of "
                f"`logits_processors` after HSA had put it in. Let {TypeListener.__module__}:{TypeListener.__name__} stay there."
            )
        if self.rules != rules:
            raise ValueError(f"The model's layers have the rules {self.rules}, but the KV cache was made for {rules}.")

    def get(self, index: int, length: int) -> Row:
        """Return the request at a place, with its tokens known.

        Args:
            index: The place.
            length: How many tokens of it a forward computes or has computed.

        Raises:
            MissedRequest: If nobody told of it, or of as many tokens.
        """
        row = self.by_index.get(index)
        known = 0
        if row is not None:
            row.tokens.read(length)
            known = len(row.tokens)
        if row is None or known < length:
            raise MissedRequest(
                f"The request in row {index} of vLLM's batch has {length} tokens, but the types of {known} are known: HSA was not told "
                "of it. It is not computed, as it would be another model's answer. Another plugin keeps vLLM from telling "
                f"{TypeListener.__name__} of its batch, or this version of vLLM does it otherwise: start without other plugins."
            )
        return row

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
        if vllm_config.scheduler_config.async_scheduling:
            raise ValueError("HSA in vLLM needs to know each token before the next step: leave async_scheduling out.")
        self._rows = rows_of(vllm_config)
        self._rows.listener = self
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
        if rows.listener is not self:  # named twice: a move that is made twice loses requests
            return
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
