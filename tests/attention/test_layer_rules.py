"""What holds in a layer: HSA's limits and the model's own window, and which types have one reach."""

import pytest

from hsa_factory import HSAConfig
from hsa_factory.attention import LayerRules


class TestSlidingWindow:
    def test_narrows_windows_and_gives_one_to_types_without(self):
        rules = LayerRules.of(HSAConfig(landmark_window=5), 11)
        assert rules.windows == (10, 5, 10) and rules.sliding_window is None and not rules.has_turns
        assert LayerRules.plain(11).windows == (10, 10, 10)

    def test_cuts_what_turns_let_see_but_is_no_window_of_their_types(self):
        rules = LayerRules.of(HSAConfig(noise_turns=1, landmark_turns=2, landmark_window=20), 11)
        assert rules.windows == (10, 10, None) and rules.turns == (None, 2, 1)
        assert rules.sliding_window == 11 and rules.sliding_reach == 10 and rules.has_turns
        assert rules.window_reach == [10, 10, -1] and rules.turn_reach == [-1, 2, 1]

    def test_rules_without_turns_are_one_key_whatever_window_they_lie_within(self):
        config = HSAConfig(global_window=3, landmark_window=3, noise_window=3)
        assert LayerRules.of(config, 50) == LayerRules.of(config, 90) == LayerRules.of(config)


@pytest.mark.parametrize(
    ("options", "longest", "near", "bands"),
    [
        ({}, 5000, [2], [[0, 1]]),
        ({}, 40, [], [[0, 1, 2]]),
        ({"noise_window": None}, 5000, [], [[0, 1, 2]]),
        ({"landmark_window": 1000}, 5000, [2], [[0], [1]]),
        ({"landmark_window": 256, "global_window": 257}, 5000, [1, 2], [[0]]),
        ({"noise_turns": 1}, 5000, [], [[0, 1], [2]]),
        ({"noise_turns": 1, "noise_window": 50}, 5000, [], [[0, 1], [2]]),
        ({"noise_turns": 1, "landmark_turns": 1}, 5000, [], [[0], [1, 2]]),
        ({"noise_turns": 1, "landmark_turns": 4, "global_turns": 9}, 5000, [], [[0], [1], [2]]),
    ],
)
def test_bands(options, longest, near, bands):
    assert LayerRules.of(HSAConfig(**options)).bands(longest=longest) == (near, bands)
