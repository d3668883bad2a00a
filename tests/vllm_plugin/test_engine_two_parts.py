"""Keys without a bias and keys with one, each attended to alone and joined, give what all give together."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan
from hsa_factory.attention.backends.reference import reference_attention
from hsa_factory.attention.layer_rules import LayerRules
from hsa_factory.models.cache.tagger import ConstantTagger
from hsa_factory.vllm import metadata as module
from hsa_factory.vllm.listener import Row
from hsa_factory.vllm.metadata import HSAMetadataBuilder
from hsa_factory.vllm.tokens import TokenTypes
from hsa_factory.vllm.types import PromptTypes


SIZE, BLOCK = 8, 4


@pytest.mark.parametrize("heads, shared", [(1, 4), (2, 2)])
@pytest.mark.parametrize("limited", [0, 256])
def test_as_together(rng, monkeypatch, heads, shared, limited):
    monkeypatch.setattr(module, "_LIMITED", limited)
    rules, length, first = LayerRules.of(HSAConfig(noise_window=9, landmark_decay=0.1)), 400, 130
    types = np.repeat(rng.integers(0, 3, length // 10), 10).astype(np.uint8)
    types[:20] = 0
    row = Row(TokenTypes(PromptTypes(types), ConstantTagger(2), [rules]))
    builder = HSAMetadataBuilder.__new__(HSAMetadataBuilder)
    builder.device, builder._heads, builder._block_size = torch.device("cpu"), heads, BLOCK
    builder._rows = SimpleNamespace(rules=(rules,))
    table = rng.permutation(length // BLOCK)
    cache = torch.randn(len(table), heads, BLOCK, 2 * SIZE)
    query = torch.randn(length - first, heads * shared, SIZE)
    output = torch.empty_like(query)
    for piece in module._pieces(row, 0, length - first, length, has_kernel=False):
        piece.blocks = table
        (group,) = builder._groups_of(piece)
        assert {strips.plan.query_length for strips in group.parts.strips} <= {32, 128, 14}
        for _ in range(2):
            group.parts.attend(query[group.queries], cache.view(-1, 2 * SIZE), rules, 0.3, output[group.queries])
    held = cache[torch.from_numpy(table)].transpose(0, 1).reshape(1, heads, length, 2 * SIZE)
    plan = AttentionPlan.from_inputs(torch.from_numpy(types)[None].long(), query_length=length - first)
    asked = query.transpose(0, 1)[None]
    right, _ = reference_attention(asked, held[..., :SIZE], held[..., SIZE:], plan, rules, scale=0.3)
    assert torch.allclose(output, right[0].transpose(0, 1), atol=1e-5)
