"""The engine's greedy tokens are those of `generate`, whatever the batch, the chunks, the pool and the cache."""

from types import SimpleNamespace

import pytest
from engines import random_request

from hsa_factory.vllm import attention, listener
from hsa_factory.vllm.causal_kernel import causal_attention
from hsa_factory.vllm.whole_blocks import BlocksAhead


LENGTHS = (150, 333, 801, 1200, 1700)


def test_a_batch(serve, rng):
    served = serve()
    requests = [random_request(rng, length) for length in LENGTHS]
    expected = served.expected(requests, 40)
    assert served.ask(requests, 40) == expected
    all_global = [(ids, [0] * len(ids)) for ids, _ in requests]
    assert all(served.ask(all_global, 40)[row] != expected[row] for row in range(5))  # types matter


@pytest.mark.parametrize("chunk", [64, 256])
def test_chunks(serve, rng, chunk):
    requests = [random_request(rng, length) for length in (*LENGTHS, 1, 2, 63, 64, 65)]
    served = serve(max_num_batched_tokens=chunk, max_num_seqs=16)
    assert served.ask(requests, 20) == served.expected(requests, 20)


def test_what_is_plain_goes_to_the_kernel(serve, rng, monkeypatch):
    """Until something is limited or fades, and from where that is out of sight: in one chunk, over several, after a cached prefix."""
    seen = []

    def noting(query, key, *rest):
        seen.append((query.shape[0], key.shape[0]))
        return causal_attention(query, key, *rest)

    monkeypatch.setattr(attention, "causal_attention", noting)
    ids = rng.integers(0, 280, 900).tolist()
    requests = [(ids, [0] * 900), (ids[:700], [0] * 400 + [2] * 30 + [0] * 270), (ids[:300], [0, 1, *[0] * 298])]
    for chunk in (4096, 256):
        served = serve(model={"head_dim": 32}, max_num_batched_tokens=chunk, max_num_seqs=16)
        for request, whole in zip(requests, ({(900, 900)}, {(400, 400)}, set())):
            served.llm.reset_prefix_cache()
            seen.clear()
            assert served.ask([request], 20) == served.expected([request], 20)
            assert (set(seen) == whole) if chunk == 4096 else bool(seen) == bool(whole)
        served.ask(requests[:1], 1)
        longer = (ids + ids[:130], [0] * 1030)
        seen.clear()
        assert served.ask([longer], 20) == served.expected([longer], 20)
        assert {queries < keys for queries, keys in seen} == {True}


def test_keys_are_copied_by_blocks_where_most_of_these_are_seen(serve, rng, monkeypatch):
    seen = []

    def noting(*arguments):
        seen.append(BlocksAhead.of(*arguments))
        return seen[-1]

    monkeypatch.setattr(listener, "BlocksAhead", SimpleNamespace(of=noting))
    served = serve()
    runs, scattered = [0] * 150 + [2] * 180, [0, *[2] * 14] * 22
    for kinds, are_whole in (([runs], {True}), ([scattered], {False}), ([runs, scattered], {True, False})):
        requests = [(rng.integers(0, 280, 330).tolist(), types) for types in kinds]
        seen.clear()
        assert served.ask(requests, 10) == served.expected(requests, 10)
        assert {bool(ahead.bias) for ahead in seen} == are_whole
