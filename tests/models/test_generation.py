"""Generating with HSA."""

import pytest
import torch

from hsa_factory import HSAConfig, disable_hsa, enable_hsa, tiny
from hsa_factory.models import HSACache


MODELS = tiny.MODEL_TYPES


@pytest.mark.parametrize("model_type", MODELS)
def test_greedy(model_type):
    config = HSAConfig(noise_window=5, generated_type="NOISE")
    model = tiny.build_model(model_type)
    assert "generate" not in vars(model)
    enable_hsa(model, config)
    ids = torch.randint(0, 1000, (2, 60))
    kinds = torch.randint(0, 3, (2, 60))
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[0, :13] = 0
    texts = []
    for evict in (True, False):
        cache = HSACache(config, evict=evict, max_waiting=16)
        texts.append(
            model.generate(
                ids,
                attention_mask=mask,
                semantic_ids=kinds,
                past_key_values=cache,
                do_sample=False,
                max_new_tokens=80,
                pad_token_id=0,
            )
        )
        print(cache.report())
    full = model(
        input_ids=texts[0],
        attention_mask=torch.nn.functional.pad(mask, (0, 80), value=1),
        semantic_ids=torch.nn.functional.pad(kinds, (0, 80), value=2),
    ).logits
    assert torch.equal(*texts)
    assert (full[:, 59:-1].argmax(-1) == texts[0][:, 60:]).all()
    disable_hsa(model)
    assert "generate" not in vars(model)
