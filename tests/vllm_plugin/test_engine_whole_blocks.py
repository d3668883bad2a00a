"""Keys copied by whole blocks give what they give one by one, to each query of a block; what else stands there is never seen."""

import numpy as np
import pytest
import torch

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan
from hsa_factory.attention.layer_rules import LayerRules
from hsa_factory.models.cache.tagger import ConstantTagger
from hsa_factory.vllm import whole_blocks as module
from hsa_factory.vllm.listener import Row
from hsa_factory.vllm.tokens import TokenTypes
from hsa_factory.vllm.types import PromptTypes
from hsa_factory.vllm.whole_blocks import BlocksAhead, WholeBlocks


HEADS, SHARED, SIZE, BLOCK = 2, 3, 8, 4
RULES = LayerRules.of(HSAConfig(noise_window=9))
LENGTHS = (37, 5, 1, 64)


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def make(rng, noise, generated=2):
    """Return requests of whose tokens about a share of `noise` is NOISE."""
    outputs = [[] for _ in LENGTHS]
    types = [
        np.where(rng.random(length) < noise, 2, rng.integers(0, 2, length)).astype(np.uint8) for length in LENGTHS
    ]
    tagger = ConstantTagger(generated)
    return [Row(TokenTypes(PromptTypes(kinds), tagger, [RULES], ids)) for kinds, ids in zip(types, outputs)], outputs


@pytest.mark.parametrize("copied", [1, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_one_by_one(rng, monkeypatch, copied, dtype):
    monkeypatch.setattr(module, "_COPIED", copied)
    monkeypatch.setattr(module, "_SPARE", 9.0)  # requests of one token, too
    rows, outputs = make(rng, 0.3)
    tables, kept, made = rng.permutation(80).reshape(4, 20), [], []
    for step in range(6):  # over the end of a block
        requests, positions, seen = [], [], []
        for row, ids, length, table in zip(rows, outputs, LENGTHS, tables):
            ids += [7] * (step > 0)
            row.tokens.read()
            last, at = row.tokens.last, length + step - 1
            requests.append(row.ahead(at, table, BLOCK))
            positions.append(at)
            seen.append(np.flatnonzero(last[: at + 1] >= at))
        kept.append(requests[0])
        cache = torch.full((80, HEADS, BLOCK, 2 * SIZE), float("nan"))
        for places, table in zip(seen, tables):
            cache[table[places // BLOCK], :, places % BLOCK] = normal(len(places), HEADS, 2 * SIZE)
        cache = cache.to(dtype)
        query = normal(len(rows), HEADS * SHARED, SIZE).to(dtype)
        if not made or not made[-1].fits(requests):
            made.append(WholeBlocks(4, max(len(one.blocks) for one in requests), [RULES], HEADS, BLOCK, 1))
        blocks = made[-1]
        blocks.update(requests, positions)
        assert (len(blocks.spare) == 4) == (copied == 1)
        found = torch.empty_like(query)
        for _ in range(2):  # a layer after the other
            blocks.attend(query, cache.view(-1, 2 * SIZE), RULES, 0.3, found)
        assert found.isfinite().all()
        for index, (places, table) in enumerate(zip(seen, tables)):
            right = one_by_one(query[index], cache[table[places // BLOCK], :, places % BLOCK], places, rows[index])
            assert torch.allclose(found[index].float(), right, atol=1e-5 if dtype is torch.float32 else 2e-2)
    assert len({id(ahead) for ahead in kept}) == 3  # 36 to 42: three blocks
    assert 1 < len(made) < 6


def one_by_one(query, held, places, row):
    keys, values = held.float().split(SIZE, dim=-1)
    ahead, kinds = torch.from_numpy(places - places[-1]), torch.from_numpy(row.tokens.types[places]).long()
    bias = torch.tensor(RULES.decays)[kinds] * ahead
    weights = (torch.einsum("hgd,khd->hgk", query.view(HEADS, SHARED, SIZE).float(), keys) * 0.3 + bias).softmax(-1)
    return torch.einsum("hgk,khd->hgd", weights, values).reshape(-1, SIZE)


def test_another_type_than_was_thought_is_found_out(rng):
    rows, outputs = make(rng, 0.0, generated=0)
    row, ids = rows[1], outputs[1]
    row.tokens.types[-1] = 2
    table = np.arange(20)
    first = row.ahead(4, table, BLOCK)
    ids.append(7)
    row.tokens.read()
    assert row.ahead(5, table, BLOCK) is not first
    assert row.ahead(3, table, BLOCK) is None  # not the last one known


def test_where_few_of_their_tokens_are_keys_they_are_not_copied(rng):
    rows, _ = make(rng, 0.9)
    assert rows[3].ahead(63, np.arange(20), BLOCK) is None


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"noise_window": 2, "landmark_window": 6},
        {"noise_turns": 0, "landmark_turns": 1},
        {"hide": [(2, 1), (2, 2)]},
        {"hide": [(0, 1)]},
    ],
)
@pytest.mark.parametrize("sliding", [None, 8])
def test_what_single_queries_see_is_what_the_rules_say(rng, rules, sliding):
    """In each of two kinds of layers."""
    layers = [LayerRules.of(HSAConfig(**rules), sliding), LayerRules.plain(sliding)]
    kinds, turns = rng.integers(0, 3, 21).astype(np.uint8), np.sort(rng.integers(0, 4, 21))
    kinds[-1] = 2
    table = rng.permutation(6)
    for own in (layers[:1], layers):
        tokens = TokenTypes(PromptTypes(kinds, turns), ConstantTagger(2), own)
        ahead = BlocksAhead.of(tokens, np.arange(21), table, BLOCK)
        types, all_turns = np.append(kinds, [2] * 3).astype(np.int64), np.append(turns, [turns[-1]] * 3)
        plan = AttentionPlan.from_inputs(
            torch.from_numpy(types)[None], turn_ids=torch.from_numpy(all_turns)[None], query_length=4
        )
        order = (np.argsort(table)[ahead.blocks][:, None] * BLOCK + np.arange(BLOCK)).ravel()
        for layer in own:
            right = plan.dense_bias(torch.float32, layer)[0, 0].numpy()
            assert (ahead.bias[layer] == right[:, order]).all()
        assert (ahead.is_spare == np.all([np.isneginf(ahead.bias[layer]) for layer in own], axis=0)).all()
