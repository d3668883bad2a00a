"""The engine's greedy tokens are those of `generate`, whatever the batch, the chunks, the pool and the cache."""

import pytest
from engines import random_request


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
