"""What rules cost: bytes against a cache that a tiny model fills, pairs and keys by their definition, time as measured."""

import itertools
import json
import random

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.attention.layer_rules import LayerRules
from hsa_factory.inspection import attention_time as timing
from hsa_factory.inspection.attention_time import AttentionTime, Kernel
from hsa_factory.inspection.model_shape import ModelShape
from hsa_factory.inspection.sample_cost import Tokens, gone_from, layer_cost, sample_cost
from hsa_factory.models.cache import HSACache


def conversation(seed, turns=9, longest=160):
    """A trajectory: messages, then replies of some tokens."""
    rng = random.Random(seed)
    kinds, numbers, replies = [0] * 30, [0] * 30, [False] * 30
    for turn in range(turns):
        for length, is_reply in ((rng.randint(1, longest), False), (rng.randint(1, 15), True)):
            kinds += [rng.choice([1, 2, 2, 2])] * length
            numbers += [turn] * length
            replies += [is_reply] * length
    return Tokens(np.array(kinds, np.int8), np.array(numbers, np.int32), np.array(replies))


@pytest.mark.parametrize(
    ("model_type", "rules", "dtype"),
    [
        ("qwen3", {"noise_window": 50}, torch.bfloat16),
        ("qwen3", {"noise_turns": 0}, torch.float32),
        ("gemma2", {"noise_turns": 1, "landmark_turns": 2, "landmark_window": 90}, torch.float32),
        ("llama", {"noise_window": 700, "landmark_window": 3, "layers": [1]}, torch.float32),
        ("gemma2", {"noise_window": 5, "hide": [[kind, 1] for kind in range(3)]}, torch.float32),
        ("qwen3_5_text", {"noise_window": 20}, torch.float32),
    ],
)
def test_bytes_are_those_of_a_cache_that_a_model_fills(model_type, rules, dtype):
    config, tokens = HSAConfig(**rules), conversation(3, turns=3 if model_type == "qwen3_5_text" else 9)
    model = tiny.build_model(model_type).to(dtype).eval()
    model.config.get_text_config().dtype = dtype
    shape = ModelShape.of(model.config, config)
    cost = sample_cost(tokens, shape)
    ids = torch.randint(5, 200, (1, len(tokens)), generator=torch.Generator().manual_seed(0))
    types = torch.from_numpy(tokens.semantic_ids).long()[None]
    numbers = torch.from_numpy(tokens.turn_ids).long()[None]
    sizes, pieces = [], [0, *tokens.forwards(shape.is_hybrid).tolist()]
    plain = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=plain)
        enable_hsa(model, config)
        cache = HSACache(config)
        for start, stop in itertools.pairwise(pieces):
            new = {"turn_ids": numbers[:, start:stop]} if cache.config.turns != (None,) * 3 else {}
            model(input_ids=ids[:, start:stop], semantic_ids=types[:, start:stop], past_key_values=cache, **new)
            sizes.append(cache.report().bytes)
    assert cost.cache_end == sizes[-1] and cost.cache_peak == max(sizes)
    states = [
        states
        for layer in plain.layers
        for name in ("keys", "values")
        if (states := getattr(layer, name, None)) is not None
    ]
    assert cost.plain_cache == sum(one.numel() * one.element_size() for one in states)


@pytest.mark.parametrize("seed", range(12))
def test_pairs_and_keys_are_those_of_the_definition(seed):
    rng = random.Random(seed)
    limits = {f"{kind}_turns": rng.choice([None, 0, 1, 4]) for kind in ("global", "landmark", "noise")}
    limits |= {f"{kind}_window": rng.choice([None, 0, 9, 60]) for kind in ("global", "landmark", "noise")}
    hide = rng.sample(list(itertools.product(range(3), range(3))), rng.choice([0, 2, 5]))
    tokens = conversation(seed, turns=6, longest=20)
    rules = LayerRules.of(HSAConfig(hide=hide, **limits), rng.choice([None, 25]))
    bias = tokens.plan().dense_bias(torch.float32, rules)[0, 0]
    cost = layer_cost(tokens, rules)
    assert cost.pairs == int((bias != float("-inf")).sum())

    # a key is held while a token that goes on in the same turn, of any type, could see it
    for place in rng.sample(range(len(tokens)), 6):
        types = np.append(tokens.semantic_ids[: place + 1], [0, 1, 2]).astype(np.int8)
        turns = np.append(tokens.turn_ids[: place + 1], [tokens.turn_ids[place]] * 3)
        seen = np.zeros(place + 1, np.bool_)
        for kind in range(3):
            kinds = np.append(types[: place + 1], kind).astype(np.int8)
            later = Tokens(kinds, turns[: place + 2], np.zeros(place + 2, np.bool_))
            seen |= (later.plan().dense_bias(torch.float32, rules)[0, 0, -1, :-1] != float("-inf")).numpy()
        assert cost.held[place] == seen.sum()
    assert (gone_from(tokens, rules) >= np.arange(len(tokens))).all()


def test_forwards_are_messages_and_single_tokens_of_replies():
    replies = np.array([0, 0, 0, 1, 1, 0, 0, 1], np.bool_)
    tokens = Tokens(np.zeros(8, np.int8), None, replies)
    assert tokens.forwards().tolist() == [3, 4, 5, 7, 8]
    assert tokens.forwards(is_hybrid=True).tolist() == [3, 4, 5, 6, 7, 8]
    long = Tokens(np.zeros(9000, np.int8), None, np.zeros(9000, np.bool_))
    assert long.forwards().tolist() == [4096, 8192, 9000]


def test_two_numbers_are_found_and_neither_is_negative():
    points = [(10**6, 2000), (10**7, 6000), (3 * 10**7, 9000)]
    kernel = Kernel(2e-9, 3e-7)
    found = Kernel.fit([(*point, kernel.seconds(*point)) for point in points])
    assert found.pair_seconds == pytest.approx(2e-9) and found.token_seconds == pytest.approx(3e-7)
    found = Kernel.fit([(pairs, tokens, 2e-9 * pairs - 1e-8 * tokens) for pairs, tokens in points])
    assert found.token_seconds == 0 and found.pair_seconds == pytest.approx(2e-9, rel=0.1)


def test_time_is_the_sum_over_layers():
    tokens, config = conversation(1), HSAConfig(layers=[0])
    shape = ModelShape.of(tiny.tiny_config("qwen3", 300), config)
    cost, n = sample_cost(tokens, shape), len(tokens)
    kernels = {"plain": Kernel(1, 0), "dense": Kernel(10, 0), "blockwise": Kernel(100, 3)}
    clock = AttentionTime("here", 1, 4, "blockwise", n, kernels)
    pairs = layer_cost(tokens, LayerRules.of(config)).pairs
    causal = n * (n + 1) // 2
    assert clock.with_hsa(cost) == 4 * (100 * pairs + 3 * n + causal)
    assert clock.plain(cost) == 4 * 2 * causal
    short = AttentionTime("here", 1, 4, "blockwise", n + 1, kernels)
    assert short.with_hsa(cost) == 4 * (10 * n * n + causal)
    assert clock.where == "here, 1 thread"


def test_it_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(timing, "_LENGTHS", dict.fromkeys(timing._LENGTHS, (64, 128)))
    shape = ModelShape.of(tiny.tiny_config("qwen3", 300), HSAConfig())
    said = []
    first = timing.attention_time(shape, "auto", said.append)
    assert len(said) == 3 and all("once for this machine" in line for line in said)
    assert timing.attention_time(shape, "auto", said.append) == first and len(said) == 3
    kept = tmp_path / "hsa-factory" / timing.CACHE_NAME
    assert len(json.loads(kept.read_text("utf-8"))) == 3
    kept.write_text("{broken", "utf-8")
    timing.attention_time(shape, "auto", said.append)
    assert len(said) == 6
    assert first.kernels["plain"].seconds(10**6, 1000) > 0


def test_models_whose_keys_differ_are_refused():
    config = tiny.tiny_config("qwen3", 300)
    config.kv_lora_rank = 64
    with pytest.raises(ValueError, match="kv_lora_rank"):
        ModelShape.of(config, HSAConfig())
