"""The requests of a worker as vLLM's model runner V2 tells of them, which knows no logits processors of the old kind."""

from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor

from ...models.cache.tagger import ConstantTagger
from ..listener import Row, TypeListener, rows_of
from ..serving_config import TaggerMaker, serving_config
from ..tokens import TokenTypes
from ..types import types_of


class HSAModelState(DefaultModelState):
    """Keeps the types of the requests up to date, before each forward; a model names it by `get_model_state_cls`.

    Args:
        vllm_config: The engine's.
        model: The model.
        encoder_cache: Of vLLM.
        device: Of the model.
    """

    supports_prompt_embeds = False

    def __init__(self, vllm_config: VllmConfig, model: nn.Module, encoder_cache: Any, device: torch.device) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        config = serving_config(vllm_config)
        assert config is not None, "the model's architecture names HSA"
        self._config, self._rows = config, rows_of(vllm_config)
        self._make_tagger = TaggerMaker(vllm_config, config)
        self._known: dict[str, tuple[Row, list[int]]] = {}

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """Take a request in; one that was preempted brings along what it had generated."""
        super().add_request(req_index, new_req_data)
        prompt_ids, params = new_req_data.prompt_token_ids, new_req_data.sampling_params
        assert prompt_ids is not None and params is not None, "the scheduler ends other requests"
        prompt = types_of(params.extra_args, len(prompt_ids), self._config)
        generated = list((new_req_data.prefill_token_ids or ())[len(prompt_ids) :])
        tokens = TokenTypes(prompt, self._make_tagger(prompt), self._rows.rules, generated)
        self._known[new_req_data.req_id] = Row(tokens), generated

    def remove_request(self, req_id: str) -> None:
        """Forget a request."""
        super().remove_request(req_id)
        self._known.pop(req_id, None)

    def prepare_attn(self, input_batch: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Say which request is which row of the batch, and what was generated since; then as vLLM."""
        known = [self._known.get(name) for name in input_batch.req_ids]  # none: a dry run
        self._rows.by_index = {index: found[0] for index, found in enumerate(known) if found is not None}
        self._read_generated(input_batch, known)
        return super().prepare_attn(input_batch, *args, **kwargs)

    def _read_generated(self, input_batch: Any, known: list[tuple[Row, list[int]] | None]) -> None:
        """Add the tokens that the forward reads and that were generated: only rules need them, for which the CPU waits."""
        ids: list[int] | None = None
        for index, found in enumerate(known):
            if found is None:
                continue
            row, generated = found
            length = int(input_batch.seq_lens_cpu_upper_bound[index])
            missing = length - row.tokens.prompt_length - len(generated)
            if missing <= 0:
                continue
            if isinstance(row.tokens.tagger, ConstantTagger):
                generated += [0] * missing
                continue
            ids = input_batch.input_ids.tolist() if ids is None else ids
            stop = int(input_batch.query_start_loc_np[index + 1])
            generated += ids[stop - missing : stop]


class TypeGate(LogitsProcessor):
    """Changes no logit; vLLM asks it whether a request's parameters are allowed, where the request comes in."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse what is wrong whatever the prompt is.

        Raises:
            InvalidTypes: With the reason.
        """
        TypeListener.validate_params(sampling_params)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Return False: no logit is changed."""
        return False

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Return the logits as they are."""
        return logits
