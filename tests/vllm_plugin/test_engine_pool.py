"""Blocks go back when nobody can see their keys again; a pool too small for the plain model serves HSA's requests."""

import json
import shutil

import pytest
from engines import random_request
from vllm import LLM

from hsa_factory import HSAConfig


FULL_SIGHT = HSAConfig(noise_decay=0, landmark_window=300, landmark_decay=0)
"""Keys count in full up to their last: a block that goes a token too early shows."""


def holds_nothing(served):
    pool, manager = served.scheduler.kv_cache_manager.block_pool, served.scheduler._manager
    counts = served.scheduler.counts
    return (
        pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
        and counts.held == counts.plain == 0
        and not manager.req_to_blocks
        and not manager._is_gone
        and not manager.tokens
    )


def test_a_small_pool(serve, rng):
    served = serve(config=FULL_SIGHT, num_gpu_blocks_override=60, max_num_batched_tokens=256)
    requests = [random_request(rng, length) for length in (1799, 900, 1500, 33, 1200, 1650)]
    freed = served.scheduler.counts.freed
    assert served.ask(requests, 40) == served.expected(requests, 40)
    assert served.scheduler.counts.freed - freed > 250 and holds_nothing(served)


def test_without_a_prefix_cache(serve, rng):
    served = serve(
        config=FULL_SIGHT, num_gpu_blocks_override=60, max_num_batched_tokens=256, enable_prefix_caching=False
    )
    requests = [random_request(rng, length) for length in (1700, 900, 33)]
    assert served.ask(requests, 20) == served.expected(requests, 20)
    assert served.scheduler.counts.freed > 100 and holds_nothing(served)


def test_the_plain_model_needs_a_larger_one(serve, tmp_path):
    served = serve(config=FULL_SIGHT, num_gpu_blocks_override=60, max_num_batched_tokens=256)
    plain = shutil.copytree(served.directory, tmp_path / "plain", ignore=shutil.ignore_patterns("hsa_config.json"))
    values = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({**values, "architectures": ["Qwen3ForCausalLM"]}))
    with pytest.raises(ValueError, match="KV cache is needed"):
        LLM(str(plain), dtype="float32", enforce_eager=True, distributed_executor_backend="uni",
            max_model_len=4096, num_gpu_blocks_override=60, block_size=32, max_num_batched_tokens=256)  # fmt: skip


def test_preempted_requests_are_computed_anew(serve, rng, preempted):
    served = serve(config=FULL_SIGHT, num_gpu_blocks_override=60, max_num_batched_tokens=256)
    seen = preempted(served.scheduler)
    requests = [random_request(rng, length, noise=60) for length in (300, 310, 320, 330, 340, 350)]
    assert served.ask(requests, 150) == served.expected(requests, 150)
    assert seen and holds_nothing(served)


def test_a_request_too_large_ends_with_an_error_and_others_go_on(serve, rng):
    served = serve(config=FULL_SIGHT, num_gpu_blocks_override=60, max_num_batched_tokens=256)
    ids, types = random_request(rng, 1500)
    requests = [(ids, [0] * 1500), (ids, types)]
    too_large, fits = served.answers(requests, 10)
    assert too_large.outputs[0].finish_reason == "error" and not too_large.outputs[0].token_ids
    assert too_large.outputs[0].stop_reason.startswith("The prompt needs 94 blocks of 16 tokens at once")
    assert [list(fits.outputs[0].token_ids)] == served.expected(requests[1:], 10)
    outgrows = [(ids[:900], [0] * 900), (ids, types)]
    grown, fits = served.answers(outgrows, 200)
    assert grown.outputs[0].finish_reason == "error" and 30 < len(grown.outputs[0].token_ids) < 60
    assert "what was answered so far need more than the 59 blocks" in grown.outputs[0].stop_reason
    assert [list(fits.outputs[0].token_ids)] == served.expected(outgrows[1:], 200) and holds_nothing(served)
