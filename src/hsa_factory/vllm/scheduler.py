"""vLLM's scheduler with the types of its requests."""

from typing import Any

from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.request import Request

from .adapters import check_adapter, hold_back
from .block_hashes import TypedBlockHasher, TypedBlockHashes
from .counts import BlockCounts, put_counts
from .kv_cache import HSAManager
from .pictures import read_request
from .serving_config import TaggerMaker, serving_config
from .tokens import TokenTypes
from .types import InvalidTypes


logger = init_logger(f"vllm.{__name__}")  # under the name of the logger that vLLM lets print


class HSAScheduler(Scheduler):
    """Notes what the types of a request are, for the cache, when it comes in."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = serving_config(self.vllm_config)
        managers = self.kv_cache_manager.coordinator.single_type_managers
        assert config is not None and len(managers) == 1 and isinstance(managers[0], HSAManager)
        self._config, self._manager = config, managers[0]
        self._manager.step_tokens = self.scheduler_config.max_num_batched_tokens
        self._make_tagger = TaggerMaker(self.vllm_config, config)
        hash_function = get_hash_fn_by_name(self.cache_config.prefix_caching_hash_algo)
        self._hasher = TypedBlockHasher(self.hash_block_size, hash_function)
        self._refused: dict[str, str] = {}  # why, by the id of the request
        self._ending: dict[str, str] = {}  # those that end with this step
        self._keeps_adapters_apart = self.vllm_config.lora_config is not None and current_platform.is_cpu()

    @property
    def counts(self) -> BlockCounts:
        """Blocks held now, without HSA, and given back."""
        return self._manager.counts()

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """Return vLLM's statistics, with the counts of blocks in them."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            put_counts(stats.num_kv_fetch_reqs_by_stage, self.counts)
        return stats

    def add_request(self, request: Request) -> None:
        """Take a request in. One that cannot be served ends with an error, and the engine goes on."""
        try:
            tokens = self._tokens_of(request)
        except InvalidTypes as error:
            logger.error("Request %s is refused: %s", request.request_id, error)
            super().add_request(request)
            self._refused[request.request_id] = str(error)
            return
        caches = request._block_hasher is not None
        request._block_hasher = self._hasher if caches else None
        request.block_hashes = TypedBlockHashes(tokens)
        request.update_block_hashes()
        self._manager.tokens[request.request_id] = tokens
        super().add_request(request)

    def _tokens_of(self, request: Request) -> TokenTypes:
        if request.resumable or request.prompt_token_ids is None or request.sampling_params is None:
            raise InvalidTypes("HSA needs a prompt of token ids that is complete, to generate from.")
        check_adapter(request.lora_request, self._config)
        prompt = read_request(request, self._config)
        tokens = TokenTypes(prompt, self._make_tagger(prompt), self._manager.rules, request.output_token_ids)
        needed = self._manager.most_blocks(tokens)
        if needed > self._blocks:
            raise InvalidTypes(
                f"The prompt needs {needed} blocks of {self._manager.block_size} tokens at once, but the KV cache has {self._blocks}."
            )
        return tokens

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Plan a step. What was refused ends with it, and so does a request that has outgrown the whole cache."""
        self._ending = {key: reason for key, reason in self._refused.items() if key in self.requests}
        self._refused.clear()
        if self._ending:
            self.waiting.remove_requests([self.requests[key] for key in self._ending])
        held = hold_back(self.running, self.waiting) if self._keeps_adapters_apart else []
        output = super().schedule(*args, **kwargs)
        for request in held:
            self.waiting.add_request(request)
        if not output.num_scheduled_tokens and not self.running and self.waiting:
            first = self.waiting.peek_request()
            if first.request_id in self._manager.tokens and not self._may_fit(first):
                logger.error("Request %s has outgrown the KV cache; it ends.", first.request_id)
                self._ending[first.request_id] = (
                    f"The prompt and what was answered so far need more than the {self._blocks} blocks of {self._manager.block_size} tokens "
                    "that the KV cache has."
                )
        self.grammar_compile_error_reqs.update(self._ending)  # those that end with an error
        return output

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        """Take in what a step gave, and say of what ended with an error why: `stop_reason` has room for it."""
        outputs = super().update_from_output(*args, **kwargs)
        for output in (output for client in outputs.values() for output in client.outputs) if self._ending else ():
            output.stop_reason = self._ending.get(output.request_id, output.stop_reason)
        self._ending = {}
        return outputs

    def _may_fit(self, request: Request) -> bool:
        needed = self._manager.most_blocks(self._manager.tokens[request.request_id])
        return needed <= self._blocks

    @property
    def _blocks(self) -> int:
        """How many blocks requests can have: vLLM keeps one."""
        return int(self.kv_cache_manager.block_pool.num_gpu_blocks) - 1
