"""All that rules can say: types of generated text by tags, known late; turns; pairs that hide; some layers only."""

import numpy as np
import pytest
import torch
from engines import random_request
from transformers import LogitsProcessor

from hsa_factory import HSAConfig
from hsa_factory.attention import LayerRules
from hsa_factory.models.generation.rule_tagger import make_tagger
from hsa_factory.vllm.tokens import TokenTypes
from hsa_factory.vllm.types import PromptTypes


EARLY = ({"tag": ["think"], "type": "NOISE"}, {"tag": ["m"], "type": "LANDMARK"})
AT_CLOSING = (
    {"tag": ["think"], "verbs": ["a", "b", "<"], "type": "NOISE"},
    {"tag": ["m"], "verbs": ["a"], "type": "NOISE"},
)
AT_THE_END = ({"contains": ["a"], "type": "NOISE"}, {"tag": ["think"], "type": "LANDMARK"})
FEW = ["<think>", "</think>", "a", "b"]
WORDS = ["<think>", "</think>", "<", "m", ">", "</", "a", "b"]


class Only(LogitsProcessor):
    """Leaves some tokens to choose from."""

    def __init__(self, allowed):
        self.allowed = allowed

    def __call__(self, input_ids, scores):
        kept = torch.full_like(scores, -torch.inf)
        kept[:, self.allowed] = scores[:, self.allowed]
        return kept


def answers_of_tags(served, requests, number, words=WORDS):
    """Return the engine's answers, and generate's, written with few tokens, so that tags open and close."""
    allowed = served.tokenizer.convert_tokens_to_ids(words)
    got = served.ask(requests, number, allowed_token_ids=allowed)
    return got, served.expected(requests, number, logits_processor=[Only(allowed)])


def typed(served, request, answer):
    """Return what is known of a request and its answer."""
    prompt = PromptTypes(np.array(request[1], np.uint8))
    tagger = make_tagger(served.config, served.tokenizer)
    tokens = TokenTypes(prompt, tagger, [LayerRules.of(served.config)], answer)
    tokens.read()
    return tokens


@pytest.mark.parametrize(("rules", "words"), [(EARLY, WORDS), (AT_CLOSING, FEW), (AT_THE_END, [*FEW, "<|im_end|>"])])
def test_types_of_generated_text(serve, rng, rules, words):
    """Some tags are tokens of their own, some are spelt; some types are known only after the tokens that have them."""
    served = serve(config=HSAConfig(rules=rules, noise_window=5))
    requests = [random_request(rng, int(length)) for length in rng.integers(20, 300, 16)]
    got, expected = answers_of_tags(served, requests, 100, words)
    assert got == expected
    known = [typed(served, *pair) for pair in zip(requests, got)]
    assert {kind for tokens in known for kind in tokens.types[tokens.prompt_length :]} > {0}
    assert any(tokens.events for tokens in known) == (rules is not EARLY)


def test_late_types_outlive_preemption_and_a_next_turn(serve, rng, preempted):
    """What is computed anew sees what it saw first; a text that has the late types from the start does not."""
    served = serve(
        config=HSAConfig(rules=AT_CLOSING, noise_window=5), num_gpu_blocks_override=30, max_num_batched_tokens=64
    )
    requests = [random_request(rng, int(length)) for length in rng.integers(60, 160, 10)]
    seen = preempted(served.scheduler)
    got, expected = answers_of_tags(served, requests, 120, FEW)
    assert got == expected and seen and served.scheduler.counts.freed > 20
    assert sum(bool(typed(served, *pair).events) for pair in zip(requests, got)) > 1
    turns = []
    for (ids, types), answer in zip(requests, got):
        known = typed(served, (ids, types), answer).types.tolist()
        turns.append((ids + answer + ids[:40], known + types[:40]))
    for turn in turns:
        got, expected = answers_of_tags(served, [turn], 30, FEW)
        assert got == expected


TURNS = [
    {"noise_turns": 1},
    {"noise_turns": 0, "noise_window": 30, "landmark_turns": 2, "landmark_window": 100},
    {"noise_turns": 1, "noise_decay": 0.01, "global_turns": 3},
]


@pytest.mark.parametrize("rules", TURNS)
def test_turns(serve, rng, rules):
    served = serve(config=HSAConfig(**rules), num_gpu_blocks_override=90, max_num_batched_tokens=256)
    requests = []
    for length in (1500, 40, 900, 1237):
        ids, types = random_request(rng, length)
        requests.append((ids, types, (7 + np.cumsum(rng.random(length) < 0.01)).tolist()))
    assert served.ask(requests, 40) == served.expected(requests, 40)
    ids, types, turns = requests[0]
    served.ask(requests[:1], 1)
    turn = (ids + ids[:100], types + types[:100], turns + [turns[-1] + 2] * 100)
    (answer,) = served.answers([turn], 20)
    assert [list(answer.outputs[0].token_ids)] == served.expected([turn], 20)
    assert answer.num_cached_tokens > 1400
    assert served.scheduler.counts.freed > 20


@pytest.mark.parametrize(
    "rules",
    [
        {"hide": [("GLOBAL", "NOISE"), ("LANDMARK", "NOISE"), ("NOISE", "LANDMARK")]},
        {"layers": [1]},
        {"noise_window": 0, "noise_decay": 3.0, "landmark_window": 200, "landmark_decay": 0.1},
        {"generated_type": "NOISE"},
    ],
)
def test_other_options(serve, rng, rules):
    served = serve(config=HSAConfig(**rules), max_num_batched_tokens=256)
    requests = [random_request(rng, length) for length in (700, 1, 1100, 90)]
    freed = served.scheduler.counts.freed
    assert served.ask(requests, 60) == served.expected(requests, 60)
    assert (served.scheduler.counts.freed == freed) == ("layers" in rules)  # where some layers see all, all stays
