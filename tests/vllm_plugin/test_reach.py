"""Until when keys are seen, and what follows for blocks: against the product's own plan, and against all cases tried out."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules
from hsa_factory.attention.layer_rules import UNLIMITED
from hsa_factory.vllm.reach import (
    last_of_blocks,
    last_visible,
    longest_hit,
    most_blocks_held,
    reach_of_new,
)


LIMITS = st.none() | st.integers(0, 6)
RULES = st.builds(
    lambda windows, turns, sliding: LayerRules.of(
        HSAConfig(
            **{f"{kind}_window": w for kind, w in zip(("global", "landmark", "noise"), windows)},
            **{f"{kind}_turns": t for kind, t in zip(("global", "landmark", "noise"), turns)},
        ),
        sliding,
    ),
    st.tuples(LIMITS, LIMITS, LIMITS),
    st.tuples(LIMITS, LIMITS, LIMITS),
    st.none() | st.integers(1, 8),
)
TOKENS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=24)


@given(TOKENS, st.lists(RULES, min_size=1, max_size=2), st.integers(0, 30))
def test_reach_is_that_of_the_dense_bias(tokens, rules, more):
    """Of a text that goes on in its last turn."""
    types = np.array([kind for kind, _ in tokens], np.uint8)
    turns = np.cumsum([step for _, step in tokens])
    last = last_visible(types, turns, rules)

    length = len(types) + more
    all_types = torch.tensor([[*types.tolist(), *[0] * more]])
    all_turns = torch.tensor([[*turns.tolist(), *[int(turns[-1])] * more]])
    plan = AttentionPlan.from_inputs(all_types, turn_ids=all_turns)
    seen = torch.stack([plan.dense_bias(torch.float32, each)[0, 0] > -torch.inf for each in rules]).any(0).numpy()
    queries = np.arange(length)
    for key in range(len(types)):
        assert seen[key:, key].tolist() == (queries[key:] <= last[key]).tolist()
    newest = last[-1] - (len(types) - 1)
    assert min(newest, UNLIMITED // 2) == min(reach_of_new(rules)[types[-1]], UNLIMITED // 2)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=10), st.integers(1, 4), st.integers(0, 12))
def test_a_hit_is_the_longest_that_lacks_nothing(blocks, size, limit):
    is_cached = np.array([cached for cached, _ in blocks], bool)
    last = np.array([index * size + more for index, (_, more) in enumerate(blocks)], np.int64)

    def lacks_nothing(number):
        return all(is_cached[index] or last[index] < number * size for index in range(number))

    expected = max(number for number in range(min(limit, len(blocks)) + 1) if lacks_nothing(number))
    assert longest_hit(is_cached, last, size, limit) == expected


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 4))
def test_enough_blocks_are_asked_for(reaches, chunk, size):
    last = np.arange(len(reaches)) + np.array(reaches)
    length, most = len(last), 0
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        full = last_of_blocks(last[: start - start % size], size)
        most = max(most, -(-stop // size) - int((full < start).sum()))
    asked = most_blocks_held(last, length, chunk, size)
    assert most <= asked <= -(-length // size)
