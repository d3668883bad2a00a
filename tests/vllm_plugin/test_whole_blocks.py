"""Keys copied by whole blocks give what they give one by one; what else stands in the blocks is never seen."""

import numpy as np
import pytest
import torch

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan
from hsa_factory.attention.layer_rules import LayerRules
from hsa_factory.vllm import whole_blocks as module
from hsa_factory.vllm.whole_blocks import whole_blocks


HEADS, SHARED, SIZE, BLOCK = 2, 3, 8, 4
RULES = LayerRules.of(HSAConfig(noise_window=9))


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def make(rng, kept):
    """Return plan, positions and block tables of requests, of whose tokens about a share of `kept` can be seen."""
    positions, tables, types, free = [], [], [], rng.permutation(68)
    for length in (37, 5, 1, 64):
        visible = np.flatnonzero(rng.random(length) < kept)
        positions.append(np.union1d(visible, [length - 1]).astype(np.int64))
        tables.append(free[:17])
        free = free[17:]
        types.append(rng.integers(0, 3, len(positions[-1])))
    width = max(map(len, positions))
    padded = lambda rows: torch.tensor([[0] * (width - len(row)) + row.tolist() for row in rows])
    mask = padded([np.ones(len(row), int) for row in positions])
    plan = AttentionPlan(
        padded(types), mask, padded(positions), 1, has_gaps=True, has_padding=True, has_clean_padding=True, is_packed=False
    )  # fmt: skip
    return plan, positions, tables, types


@torch.inference_mode()  # as vLLM, whose engine may have made the buffer
@pytest.mark.parametrize("copied", [1, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_one_by_one(rng, monkeypatch, copied, dtype):
    monkeypatch.setattr(module, "_COPIED", copied)
    plan, positions, tables, types = make(rng, 0.9)
    cache = torch.full((68, HEADS, BLOCK, 2 * SIZE), float("nan"))
    for places, table in zip(positions, tables):
        cache[table[places // BLOCK], :, places % BLOCK] = normal(len(places), HEADS, 2 * SIZE)
    cache = cache.to(dtype)
    rows, query = cache.view(-1, 2 * SIZE), normal(len(positions), HEADS * SHARED, SIZE).to(dtype)
    monkeypatch.setattr(module, "_SPARE", 9.0)  # requests of one token, too
    blocks = whole_blocks(plan, np.concatenate(positions), np.array([*map(len, positions)]), tables, HEADS, BLOCK, 1)
    assert (len(blocks.spare) == 4) == (copied == 1)
    for _ in range(2):  # a layer after the other
        found = blocks.attend(query, rows, RULES, 0.3)
    assert found.isfinite().all() and found.dtype == dtype
    for row, (places, table) in enumerate(zip(positions, tables)):
        held = cache[table[places // BLOCK], :, places % BLOCK].float()
        keys, values = held.split(SIZE, dim=-1)
        ahead = torch.from_numpy(places - places[-1])
        kinds = torch.from_numpy(types[row])
        bias = torch.tensor(RULES.decays)[kinds] * ahead
        bias[(kinds == 2) & (-ahead > 9)] = -torch.inf
        asked = query[row].view(HEADS, SHARED, SIZE).float()
        weights = (torch.einsum("hgd,khd->hgk", asked, keys) * 0.3 + bias).softmax(-1)
        right = torch.einsum("hgk,khd->hgd", weights, values).reshape(-1, SIZE)
        assert torch.allclose(found[row].float(), right, atol=1e-5 if dtype is torch.float32 else 2e-2)


def test_where_few_of_their_tokens_are_keys_they_are_not_copied(rng):
    plan, positions, tables, _ = make(rng, 0.3)
    assert (
        whole_blocks(plan, np.concatenate(positions), np.array([*map(len, positions)]), tables, HEADS, BLOCK, 1)
        is None
    )
