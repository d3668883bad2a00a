"""A whole engine with the attention of GPUs, on a CPU: all of it but the kernels, which are done by hand there."""

import pytest
from engines import random_request
from paged_cases import by_hand, written
from pictures import Seen, ask, expected, texts
from test_engine_pictures import SMALL

from hsa_factory import HSAConfig
from hsa_factory.vllm import models
from hsa_factory.vllm.paged import backend


@pytest.fixture
def paged(monkeypatch, serve):
    """A function that makes an engine as `serve` does, with the attention of GPUs."""
    monkeypatch.setattr(models, "attention_here", lambda: backend.PagedHSABackend)
    calls = []
    monkeypatch.setattr(backend, "attend", lambda *args: (calls.append(1), by_hand(*args)))
    monkeypatch.setattr(backend, "write", written)
    yield lambda **options: serve(max_num_seqs=7, **options)
    assert calls


def test_batches_chunks_and_prefixes(paged, rng):
    served = paged(max_num_batched_tokens=256)
    requests = [random_request(rng, length) for length in (150, 1, 333, 17, 801, 64)]
    assert served.ask(requests, 20) == served.expected(requests, 20)
    ids, types = requests[4]
    turns = [(ids[:stop], types[:stop]) for stop in (400, 600, 801)]
    for turn in turns:  # each finds the one before, with blocks gone
        assert served.ask([turn], 5) == served.expected([turn], 5)
    assert served.scheduler.counts.freed > 0


def test_a_pool_too_small_for_all(paged, rng, preempted):
    config = HSAConfig(noise_decay=0, landmark_window=300, landmark_decay=0)
    served = paged(config=config, num_gpu_blocks_override=60, max_num_batched_tokens=256)
    seen = preempted(served.scheduler)
    requests = [random_request(rng, length, noise=60) for length in (300, 310, 320, 330, 340, 350)]
    assert served.ask(requests, 150) == served.expected(requests, 150)
    assert seen


def test_rules_with_turns_late_types_and_hidden_pairs(paged, rng):
    config = HSAConfig(
        noise_turns=1,
        noise_window=10,
        hide=[("GLOBAL", "NOISE")],
        layers=[0, 2],
        rules=[{"tag": ["a"], "type": "LANDMARK"}, {"role": "user", "type": "NOISE"}],
    )
    served = paged(config=config)
    requests = []
    for length in (120, 333):
        ids, types = random_request(rng, length)
        requests.append((ids, types, sorted(rng.integers(0, 5, length).tolist())))
    assert served.ask(requests, 30) == served.expected(requests, 30)


def test_pictures_with_turns(paged, rng, preempted):
    """In pages, in a pool so small that requests are preempted."""
    config = HSAConfig(noise_turns=1, noise_window=0, noise_decay=0)
    served = paged(model_type="qwen2_5_vl", config=config, **{**SMALL, "num_gpu_blocks_override": 30})
    seen = preempted(served.scheduler)
    requests = [Seen.random(rng, served.tokenizer, pictures, 20) for pictures in (5, 5, 5, 4)]
    for request in requests:
        request.turns = [place // 12 for place in range(len(request.ids))]
    for request in requests[:3]:
        request.types = [min(kind, 1) for kind in request.types]  # so that little is given back
    requests[3].types = [2] * len(requests[3].ids)
    assert texts(ask(served, requests, 60)) == [expected(served, request, 60) for request in requests]
    assert seen and served.scheduler.counts.freed > 0
