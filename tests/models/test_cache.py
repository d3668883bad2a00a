"""An `HSACache`: what it holds, what it lets go, and that nothing of it can be seen in the result."""

import pytest
import torch

from hsa_factory import HSAConfig, enable_hsa, tiny
from hsa_factory.models.cache import HSACache


MODELS = tiny.MODEL_TYPES


@pytest.mark.parametrize("model_type", MODELS)
def test_token_by_token(model_type):
    config = HSAConfig(noise_window=5)
    model = enable_hsa(tiny.build_model(model_type), config)
    ids = torch.randint(0, 1000, (2, 120))
    kinds = torch.randint(0, 3, (2, 120))
    with torch.no_grad():
        full = model(input_ids=ids, semantic_ids=kinds, use_cache=False).logits
        cache = HSACache(config, max_waiting=8)
        out = [model(input_ids=ids[:, :40], semantic_ids=kinds[:, :40], past_key_values=cache).logits]
        for i in range(40, 120):
            out.append(
                model(input_ids=ids[:, i : i + 1], semantic_ids=kinds[:, i : i + 1], past_key_values=cache).logits
            )
    print(cache.report(), (torch.cat(out, 1) - full).abs().max())
    torch.testing.assert_close(torch.cat(out, 1), full, atol=1e-4, rtol=1e-4)
    assert cache.report().kept_tokens < 110
