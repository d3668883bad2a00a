"""What `serve.py` asks of an engine, and what it sees of it: requests like those of agents, and vLLM's engine in this process."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

from trajectories import SYSTEM, TASK, Message, synthetic


OBSERVATION = 420  # tokens, the mean of household trajectories
REPLY = 16  # tokens that are generated in a turn of many
ANSWER = 64  # to a prompt of its own


@dataclass(frozen=True)
class Load:
    """What users ask for, all at once; each asks for the next turn when it has its answer.

    Attributes:
        name: `prompts`: one long prompt a user; `turns`: conversations.
        tokens: Of the last prompt of each user, about.
        users: Each a list of turns: token ids and types that are new in it.
        answer: Tokens generated in a turn; vLLM is told to go on to the last.
    """

    name: str
    tokens: int
    users: list[list[tuple[list[int], list[int]]]]
    answer: int


@dataclass
class Seen:
    """What was seen of one run.

    Attributes:
        seconds: From the first request to the last answer.
        running: For each step, how many requests were in it.
        held: For each step, tokens of the KV cache that running requests held, in whole blocks.
        first: Seconds from each request to its first token.
        between: Seconds between tokens of one request.
        read: Tokens of all prompts.
        cached: Of these, found in the prefix cache.
        written: Tokens generated.
        preemptions: How often a request had to be put back.
    """

    seconds: float = 0.0
    running: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    read: int = 0
    cached: int = 0
    written: int = 0
    preemptions: int = 0

    def record(self) -> dict[str, Any]:
        """Return it as columns."""
        return {
            "seconds": round(self.seconds, 2),
            "requests": len(self.first),
            "requests_at_once": round(mean(self.running), 2),
            "requests_at_once_max": max(self.running),
            "tokens_per_s": round(self.written / self.seconds, 1),
            "prompt_tokens_per_s": round(self.read / self.seconds, 1),
            "first_token_ms": round(mean(self.first) * 1e3, 1),
            "first_token_p95_ms": round(_p95(self.first) * 1e3, 1),
            "between_tokens_ms": round(mean(self.between) * 1e3, 1),
            "between_tokens_p95_ms": round(_p95(self.between) * 1e3, 1),
            "held_tokens_max": max(self.held),
            "held_tokens_mean": round(mean(self.held)),
            "cached_share": round(self.cached / self.read, 3),
            "preemptions": self.preemptions,
        }


def _p95(values: list[float]) -> float:
    return quantiles(values, n=20)[-1] if len(values) > 1 else values[0]


def _trajectory(tokens: int, vocabulary: int) -> list[Message]:
    observations = max(1, round((tokens - SYSTEM - TASK) / (OBSERVATION + REPLY)))
    return synthetic(3 + 2 * observations, max(tokens, SYSTEM + TASK + 90 * observations), vocabulary)


def _joined(messages: list[Message]) -> tuple[list[int], list[int]]:
    ids = [token for message in messages for token in message.ids.tolist()]
    return ids, [int(message.kind) for message in messages for _ in range(len(message.ids))]


def prompts(tokens: int, users: int, vocabulary: int, answer: int = ANSWER) -> Load:
    """Make a long prompt for each user: a trajectory up to its last observation."""
    made = [[_joined(_trajectory(tokens, vocabulary)[:-1])] for _ in range(users)]
    return Load("prompts", tokens, made, answer)


def turns(tokens: int, users: int, vocabulary: int, answer: int = REPLY) -> Load:
    """Make a conversation for each user: in the first turn system prompt and task, then an observation each."""
    made = []
    for _ in range(users):
        messages = _trajectory(tokens, vocabulary)
        made.append([_joined(messages[:2]), *(_joined([message]) for message in messages[2:] if not message.is_reply)])
    return Load("turns", tokens, made, answer)


class Engine:
    """vLLM's engine in this process.

    Args:
        directory: Of the model; one that names HSA in its architecture is served with HSA.
        block_size: Tokens of a block.
        pool: Tokens that the KV cache holds.
        chunk: Tokens of a step.
        longest: Tokens of the longest request.
        dtype: Of weights and cache.
        clock: Says what time it is; all of the engine runs in this process.
    """

    def __init__(
        self,
        directory: Path,
        block_size: int,
        pool: int,
        chunk: int,
        longest: int,
        dtype: str,
        clock: Callable[[], float],
    ) -> None:
        from vllm import EngineArgs, LLMEngine

        options = EngineArgs(
            model=str(directory),
            dtype=dtype,
            block_size=block_size,
            num_gpu_blocks_override=pool // block_size,
            max_num_batched_tokens=chunk,
            max_model_len=longest,
            max_num_seqs=64,
            enforce_eager=True,
            distributed_executor_backend="uni",
            disable_log_stats=True,
        )
        self.block_size, self.longest, self.clock = block_size, longest, clock
        self.engine = LLMEngine.from_engine_args(options)
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        self.vocabulary = self.scheduler.vllm_config.model_config.get_vocab_size() - 32  # without special tokens
        self.has_hsa = self.scheduler.vllm_config.model_config.architecture.startswith("HSA")
        self._number = 0

    def run(self, load: Load) -> Seen:
        """Run a load, beginning with an empty prefix cache."""
        self.engine.reset_prefix_cache()
        seen, requests = Seen(), _Requests(self, load)
        start = self.clock()
        for user in range(len(load.users)):
            requests.ask(user)
        while self.engine.has_unfinished_requests():
            self._step(seen, requests)
        seen.seconds = self.clock() - start
        return seen

    def _step(self, seen: Seen, requests: "_Requests") -> None:
        known = list(self.scheduler.running)
        outputs, now = self.engine.step(), self.clock()
        running = {request.request_id: request for request in [*known, *self.scheduler.running]}
        seen.running.append(len(running))
        pool = self.scheduler.kv_cache_manager.block_pool
        seen.held.append((pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()) * self.block_size)
        seen.preemptions += sum(request.num_preemptions for request in running.values() if request.is_finished())
        for output in outputs:
            requests.take(output, now, seen)

    def add(self, ids: list[int], types: list[int], answer: int) -> str:
        """Ask for an answer, and return the request's name."""
        from vllm import SamplingParams

        fields = {"hsa_types": "".join(map(str, types))} if self.has_hsa else None
        params = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True, detokenize=False, extra_args=fields)
        self._number += 1
        self.engine.add_request(str(self._number), {"prompt_token_ids": ids}, params)
        return str(self._number)


class _Requests:
    """The requests of a load that are under way."""

    def __init__(self, engine: Engine, load: Load) -> None:
        self.engine, self.load = engine, load
        self.history: list[tuple[list[int], list[int]]] = [([], []) for _ in load.users]
        self.waiting: list[Iterator[tuple[list[int], list[int]]]] = [iter(user) for user in load.users]
        self.user_of: dict[str, int] = {}
        self.last: dict[str, float] = {}
        self.number: dict[str, int] = {}

    def ask(self, user: int) -> None:
        """Let a user ask for the next turn, if there is one."""
        new = next(self.waiting[user], None)
        ids, types = self.history[user]
        if new is None or len(ids) + len(new[0]) + self.load.answer > self.engine.longest:
            return
        ids, types = ids + new[0], types + new[1]
        self.history[user] = ids, types
        name = self.engine.add(ids, types, self.load.answer)
        self.user_of[name], self.last[name], self.number[name] = user, self.engine.clock(), 0

    def take(self, output: Any, now: float, seen: Seen) -> None:
        """Note what has come of a request; after its end the user goes on with what was answered."""
        name, answer = output.request_id, list(output.outputs[0].token_ids)
        new = len(answer) - self.number[name]
        if new:
            (seen.first if not self.number[name] else seen.between).append(now - self.last[name])
            self.last[name], self.number[name] = now, len(answer)
        if output.finished:
            seen.read += len(output.prompt_token_ids)
            seen.cached += output.num_cached_tokens or 0
            seen.written += len(answer)
            user = self.user_of.pop(name)
            ids, types = self.history[user]
            self.history[user] = ids + answer, types + [2] * len(answer)
            self.ask(user)
