"""Keys with gaps between them, as a cache leaves them: distances count the tokens that are missing."""

import pytest
import torch

from hsa_factory import HSAConfig
from hsa_factory.attention import AttentionPlan, LayerRules, run_attention
from hsa_factory.attention.backends.reference import reference_attention


CONFIGS = {
    "defaults": HSAConfig(),
    "wide windows": HSAConfig(landmark_window=600, noise_window=300, landmark_decay=0.01, noise_decay=0.02),
    "steep": HSAConfig(landmark_decay=0.3, noise_window=10, landmark_window=900),
    "hide": HSAConfig(hide=[("GLOBAL", "LANDMARK")], global_decay=0.001, global_window=700),
}


def scene(length, queries, seed, config, rows=1):
    """A row from which keys were taken that its last queries cannot see, beside the whole row."""
    generator = torch.Generator().manual_seed(seed)
    types = torch.randint(0, 3, (1, length), generator=generator)
    types[:, : length // 2] = torch.where(
        torch.rand(1, length // 2, generator=generator) < 0.8, 2, types[:, : length // 2]
    )
    windows = torch.tensor([length if window is None else window for window in config.windows])
    places = torch.arange(length)
    keep = (length - queries - places <= windows[types[0]]) | (places >= length - queries)
    q, k, v = (torch.randn(1, heads, length, 16, generator=generator) for heads in (4, 2, 2))
    return types, places, keep, q[:, :, length - queries :], k, v


@pytest.mark.parametrize("backend", ["dense", "blockwise", "reference"])
@pytest.mark.parametrize("queries", [1, 40, 1100])
@pytest.mark.parametrize("name", CONFIGS)
def test_as_if_nothing_was_missing(name, queries, backend):
    config = CONFIGS[name]
    types, places, keep, q, k, v = scene(2300, queries, 0, config)
    assert keep.sum() < len(keep)
    whole = AttentionPlan.from_inputs(types, query_length=queries)
    expected = reference_attention(q, k, v, whole, LayerRules.of(config))[0]
    plan = AttentionPlan.from_inputs(types[:, keep], query_length=queries, positions=places[keep][None])
    actual = run_attention(q, k[:, :, keep], v[:, :, keep], plan, LayerRules.of(config), backend=backend)[0]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
