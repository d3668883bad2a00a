"""Types of a request's tokens as they come, late ones included; what is computed anew sees what it saw first."""

import numpy as np
import pytest
import torch

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules
from hsa_factory.models.cache.tagger import ConstantTagger
from hsa_factory.models.generation.rule_tagger import make_tagger
from hsa_factory.vllm.tokens import TokenTypes
from hsa_factory.vllm.types import PromptTypes


RULES = [
    {"tag": ["think"], "verbs": ["go"], "type": "NOISE"},
    {"tag": ["m"], "type": "LANDMARK"},
    {"tag": ["think"], "verbs": ["see"], "type": "LANDMARK"},
]
TEXT = "I <m>open</m> it. <think>go to the table now</think> and <think>see the apple</think><think>go on</think> <m>x"


@pytest.fixture
def read(tiny_tokenizer):
    """Return a function that reads a generated text token by token, up to some tokens."""

    def make(config, stop=None, prompt=(0, 2, 2, 1)):
        ids = tiny_tokenizer(TEXT)["input_ids"]
        tagger = make_tagger(config, tiny_tokenizer)
        tokens = TokenTypes(PromptTypes(np.array(prompt, np.uint8)), tagger, [LayerRules.of(config)], ids)
        for length in range(len(prompt), len(prompt) + len(ids) + 1):
            if stop is None or length <= stop:
                tokens.read(length)
        return tokens

    return make


def test_late_types_are_events(read):
    config = HSAConfig(rules=RULES, noise_window=4)
    tokens = read(config)
    assert [event.semantic_type for event in tokens.events] == [1, 2, 1, 2, 1]  # a spelt tag is known late, too
    for event in tokens.events:
        assert set(tokens.first_types[event.start : event.stop]) == {0}
        assert set(tokens.types_at(event.at - 1)[event.start : event.stop]) == {0}
        assert set(tokens.types_at(event.at)[event.start : event.stop]) == {event.semantic_type}
        before = read(config, stop=event.at)
        assert before.held_from <= event.start  # they were held until then
        assert before.types.tolist() == tokens.types_at(event.at - 1)[: event.at].tolist()
    assert tokens.types_at(len(tokens)).tolist() == tokens.types.tolist()
    cuts = [event.at for event in tokens.events]
    assert [start for start, _ in tokens.pieces(0, len(tokens))] == [0, *cuts]
    assert tokens.pieces(cuts[0], cuts[1]) == [(cuts[0], cuts[1])]


def test_all_at_once_is_as_one_by_one(read, tiny_tokenizer):
    config = HSAConfig(rules=RULES, noise_window=4)
    slow = read(config)
    prompt = PromptTypes(np.array([0, 2, 2, 1], np.uint8))
    ids = tiny_tokenizer(TEXT)["input_ids"]
    fast = TokenTypes(prompt, make_tagger(config, tiny_tokenizer), slow.rules, ids)
    fast.read()
    for name in ("types", "first_types", "last"):
        assert getattr(slow, name).tolist() == getattr(fast, name).tolist()
    assert slow.events == fast.events and slow.held_from == fast.held_from


def test_no_query_sees_a_key_after_its_last(read):
    """Whatever its type was when the query came first: so blocks go in time, and not too early in a second reading."""
    config = HSAConfig(rules=RULES, noise_window=4, landmark_window=9)
    tokens = read(config)
    rules = LayerRules.of(config)
    for query in range(len(tokens)):
        types = torch.tensor(tokens.types_at(query)[: query + 1].astype(int))[None]
        bias = AttentionPlan.from_inputs(types, query_length=1).dense_bias(torch.float32, rules)[0, 0, 0]
        seen = (bias > -torch.inf).numpy()
        assert (tokens.last[: query + 1][seen] >= query).all()
    assert (tokens.last[tokens.types == 2] < len(tokens) + 4).all()


def test_types_of_one_kind_and_room_for_many():
    tokens = TokenTypes(
        PromptTypes(np.zeros(3, np.uint8)), ConstantTagger(2), [LayerRules.of(HSAConfig())], range(1000)
    )
    tokens.read(500)
    assert len(tokens) == 500 and tokens.types.sum() == 2 * 497
    tokens.read()
    assert len(tokens) == 1003 and tokens.last[-1] == 1002 + 50 and tokens.held_from == 1003
