"""Each system is what its name says: types and what is seen."""

import numpy as np
import pytest
from experiments.environments import Game, open_environments
from experiments.systems import CUT, SYSTEMS, cut_samples, keep_last, random_type, system_named, with_random_types

from hsa_factory import HSAConfig
from hsa_factory.attention.layer_rules import LayerRules
from hsa_factory.inspection.sample_cost import Tokens
from hsa_factory.labeling.matching import Message as RoleText
from hsa_factory.labeling.matching import label_messages
from hsa_factory.labeling.rule_set import RuleSet


RECIPE = "Gather all following ingredients and follow the directions to prepare this tasty meal."
MESSAGES = [
    {"role": "system", "content": "Cook."},
    {"role": "user", "content": "You are in the kitchen."},
    {"role": "assistant", "content": "read cookbook"},
    {"role": "user", "content": RECIPE},
    {"role": "assistant", "content": "move north"},
    {"role": "user", "content": "You are in the pantry."},
    {"role": "assistant", "content": "take salt"},
    {"role": "user", "content": "You take the salt."},
    {"role": "assistant", "content": "eat meal"},
]
GAME = Game("cooking", "train", 5)


def config_of(name, window=None):
    system = system_named(name)
    rules = system.rules(open_environments("cooking")[0])
    return HSAConfig(**system.options(window), **({} if rules is None else {"rules": rules}))


def types_by_message(name):
    config = config_of(name, window=50)
    if config.rules is None:
        return [int(config.default)] * len(MESSAGES)
    plain = [RoleText(message["role"], message["content"]) for message in MESSAGES]
    typed = label_messages(plain, RuleSet.parse(config.rules))
    return [int(one.spans[0][2]) if one.spans else int(one.semantic_type) for one in typed]


def seen_by_last(config, types, turns):
    tokens = Tokens(np.array(types), np.array(turns), np.zeros(len(types), bool))
    last = tokens.plan().last_seen(LayerRules.of(config))[0].numpy()
    return [bool(place >= len(types) - 1) for place in last]


def test_types_are_given_by_rules():
    glob, land, noise = 0, 1, 2
    expected = [glob, noise, land, glob, noise, noise, land, land, land]
    assert types_by_message("hsa_002_64") == types_by_message("hsa_turns_1") == expected
    assert types_by_message("recipe_noise") == [*expected[:3], noise, *expected[4:]]
    assert types_by_message("dense") == types_by_message("sliding") == [glob] * len(MESSAGES)


def test_dense_sees_everything_and_a_sliding_window_its_width():
    types, turns = [0, 1, 2] * 30, sorted([*range(30)] * 3)
    assert all(seen_by_last(config_of("dense"), types, turns))
    assert seen_by_last(config_of("sliding", window=20), types, turns) == [False] * 69 + [True] * 21
    with pytest.raises(ValueError, match="was not measured"):
        system_named("sliding").options()


def test_noise_is_seen_as_far_as_the_name_says():
    types, turns = [2] * 120, [place // 10 for place in range(120)]
    for name, number in (
        ("hsa_002_64", 65),
        ("hsa_original", 51),
        ("hsa_turns_0", 10),
        ("hsa_turns_1", 20),
        ("hsa_turns_4", 50),
    ):
        assert sum(seen_by_last(config_of(name), types, turns)) == number, name
    assert config_of("hsa_002_64").noise_decay == 0.02 and config_of("hsa_turns_1").noise_decay == 0


def test_random_types_are_drawn_at_the_given_shares_and_always_alike():
    shares = {"GLOBAL": 0.1, "LANDMARK": 0.5, "NOISE": 0.4}
    drawn = [random_type(Game("cooking", "train", seed), 3, shares) for seed in range(2000)]
    assert all(abs(drawn.count(kind) / 2000 - share) < 0.04 for kind, share in shares.items())
    once, again = with_random_types(MESSAGES, GAME, shares), with_random_types(MESSAGES, GAME, shares)
    assert once == again and once[0]["semantic_type"] == "GLOBAL"
    assert [m["semantic_type"] for m in once[1:]] == [random_type(GAME, n, shares) for n in range(1, len(MESSAGES))]


def test_old_observations_are_cut_and_each_action_is_trained_once():
    kept = [message["content"] for message in keep_last(MESSAGES, 2) if message["role"] == "user"]
    assert kept == [CUT, CUT, "You are in the pantry.", "You take the salt."]
    for offset in (0, 1, 2):
        samples = cut_samples(MESSAGES, 3, offset)
        trained = [m["content"] for part in samples for m in part if m["role"] == "assistant" and m.get("weight") != 0]
        assert trained == [m["content"] for m in MESSAGES if m["role"] == "assistant"]
        for part in samples:
            answered = [
                m["content"]
                for m, reply in zip(part, part[1:])
                if reply["role"] == "assistant" and "weight" not in reply
            ]
            assert CUT not in answered, "an action is trained whose observation was cut"


def test_names_are_unique_and_known():
    assert len({system.name for system in SYSTEMS}) == len(SYSTEMS)
    assert all(system.weights_of is None or system_named(system.weights_of) for system in SYSTEMS)
    with pytest.raises(ValueError, match="'nothing' is not there"):
        system_named("nothing")
