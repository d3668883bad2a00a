"""Nothing falls silent: what nobody can see moves nothing, what can be seen does; and nothing leaks."""

import numpy as np
from engines import random_request
from test_engine_pool import FULL_SIGHT, holds_nothing
from vllm import SamplingParams

from hsa_factory import HSAConfig
from hsa_factory.vllm.types import fields_of


def log_probability(served, ids, types):
    """Return the log-probability of the likeliest next token, and that token; nothing is found in a cache."""
    params = SamplingParams(
        temperature=0, max_tokens=1, logprobs=1, extra_args=fields_of(types), skip_reading_prefix_cache=True
    )
    (answer,) = served.llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
    (token,) = answer.outputs[0].token_ids
    return token, answer.outputs[0].logprobs[0][token].logprob


def test_the_probe(serve, rng):
    """Three layers with a window of 50: a NOISE token more than 150 before the end is out of every sight."""
    served = serve(config=HSAConfig(noise_decay=0), max_num_batched_tokens=256)
    ids, _ = random_request(rng, 700)
    types = [0] * 40 + [2] * 660
    right = log_probability(served, ids, types)
    for place, kind, moves in ((300, 2, False), (548, 2, False), (600, 2, True), (690, 2, True), (10, 0, True)):
        assert types[place] == kind
        changed = [*ids[:place], (ids[place] + 1) % 280, *ids[place + 1 :]]
        assert (log_probability(served, changed, types) != right) == moves, place
    assert log_probability(served, ids, [0] * 40 + [2] * 260 + [1] + [2] * 399) != right  # a type alone


def test_clients_that_vanish_leave_nothing(serve, rng):
    served = serve(config=FULL_SIGHT, num_gpu_blocks_override=60, max_num_batched_tokens=256)
    engine = served.llm.llm_engine
    waiting = {}
    for number in range(60):
        ids, types = random_request(rng, int(rng.integers(1, 700)))
        params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, extra_args=fields_of(types))
        engine.add_request(f"client {number}", {"prompt_token_ids": ids}, params)
        waiting[f"client {number}"] = (ids, types)
    vanishing, answers = list(waiting)[::2], {}
    while engine.has_unfinished_requests():
        for answer in engine.step():
            if answer.finished:
                answers[answer.request_id] = list(answer.outputs[0].token_ids)
        if vanishing and rng.random() < 0.7:
            engine.abort_request([vanishing.pop(int(rng.integers(len(vanishing))))])
    stayed = list(waiting)[1::2]
    assert all(len(answers[name]) == 20 for name in stayed) and holds_nothing(served)
    some = [waiting[name] for name in stayed[:3]]
    assert [answers[name] for name in stayed[:3]] == served.expected(some, 20)
    rows = served.llm.llm_engine.model_executor.driver_worker.model_runner.input_batch
    assert np.sum([request is not None for request in rows.req_ids]) <= 16
