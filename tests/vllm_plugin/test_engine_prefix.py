"""The prefix cache: it knows types, and a conversation finds its whole prefix though the blocks out of sight are gone."""

from engines import random_request, random_types
from test_engine_pool import FULL_SIGHT


def converse(served, rng, conversations, turns, number=20):
    """Let conversations grow turn by turn; return (prompt tokens, cached tokens) of each prompt after the first turn."""
    requests, hits = [random_request(rng, int(length)) for length in rng.integers(300, 500, conversations)], []
    for turn in range(turns):
        answers = served.answers(requests, number)
        texts = [list(answer.outputs[0].token_ids) for answer in answers]
        assert texts == served.expected(requests, number), turn
        if turn:
            hits += [(len(ids), answer.num_cached_tokens) for (ids, _), answer in zip(requests, answers)]
        requests = [
            (ids + text + more, types + [0] * len(text) + random_types(rng, len(more)))
            for (ids, types), text, more in zip(requests, texts, (random_request(rng, 250)[0] for _ in requests))
        ]
    return hits


def test_conversations_find_their_prefix(serve, rng):
    hits = converse(serve(), rng, conversations=3, turns=4)
    assert all(prompt - cached < 250 + 32 for prompt, cached in hits)


def test_conversations_find_their_prefix_in_a_small_pool(serve, rng):
    """Which holds one of the conversations as a whole, but not what is out of sight in it."""
    hits = converse(
        serve(config=FULL_SIGHT, num_gpu_blocks_override=60, max_num_batched_tokens=256), rng, conversations=1, turns=6
    )
    assert all(prompt - cached < 250 + 32 for prompt, cached in hits)


def test_the_same_text_with_other_types_is_another(serve, rng):
    served = serve()
    ids, types = random_request(rng, 1300)
    other = types[:700] + [(kind + 1) % 3 for kind in types[700:]]
    served.ask([(ids, types)], 5)
    (answer,) = served.answers([(ids, other)], 30)
    assert answer.num_cached_tokens == 688  # whole blocks before the first other type
    assert [list(answer.outputs[0].token_ids)] == served.expected([(ids, other)], 30)
    assert served.expected([(ids, types)], 30) != served.expected([(ids, other)], 30)


def test_a_prompt_that_ends_earlier_needs_what_a_longer_one_does_not(serve, rng):
    """A shorter text sees keys that are out of sight at the end of a longer one."""
    served = serve(config=FULL_SIGHT, num_gpu_blocks_override=60, max_num_batched_tokens=256)
    ids, types = random_request(rng, 1700)
    for length in (1700, 400, 1000, 999, 1264):
        request = [(ids[:length], types[:length])]
        assert served.ask(request, 12) == served.expected(request, 12), length
