"""HSAConfig and FeedbackConfig: what they refuse and how they say it, saving, loading, comparing."""

import copy
import dataclasses
import json
import os
import pickle

import pytest
import torch
import yaml

from hsa_factory import FeedbackConfig, HSAConfig, SemanticType
from hsa_factory.attention import hsa_attention


EVERYTHING_SET = {
    "landmark_decay": 0.25,
    "landmark_window": 300,
    "landmark_turns": 3,
    "noise_decay": 0,
    "noise_window": None,
    "noise_turns": 0,
    "global_decay": 1.5,
    "global_window": 0,
    "global_turns": None,
    "hide": [["LANDMARK", "NOISE"], [0, 2]],
    "backend": "reference",
    "layers": [3, 1, 1],
    "default_type": "noise",
    "generated_type": 1,
    "rules": [{"name": "ü", "type": "LANDMARK", "tag": ["think"], "verbs": ["a"]}],
}
RULES = [{"name": "thoughts", "type": "NOISE", "tag": ["think"]}, {"name": "rest", "type": "GLOBAL"}]
OTHER = [{"name": "all", "type": "LANDMARK"}]


class TestValues:
    def test_defaults_are_the_documented_ones(self):
        assert HSAConfig().to_dict() == {
            "landmark_decay": 0.001,
            "landmark_window": None,
            "landmark_turns": None,
            "noise_decay": 0.5,
            "noise_window": 50,
            "noise_turns": None,
            "global_decay": 0.0,
            "global_window": None,
            "global_turns": None,
            "hide": (),
            "backend": "auto",
            "layers": None,
            "default_type": "GLOBAL_CONDITION",
            "generated_type": None,
            "rules": None,
        }
        assert FeedbackConfig().to_dict() == {
            "token": "<|feedback|>",
            "occurrence": "first",
            "missing": "train",
            "empty": "drop",
            "scope": None,
            "train": "after",
        }

    @pytest.mark.parametrize("config", [HSAConfig(), FeedbackConfig()])
    def test_frozen(self, config):
        for field in dataclasses.fields(config):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(config, field.name, 1)

    def test_decays_and_windows_are_indexed_by_type(self):
        config = HSAConfig(
            global_decay=1, landmark_decay=2, noise_decay=3, global_window=4, landmark_window=5, noise_window=6
        )
        assert config.decays == (1.0, 2.0, 3.0)
        assert config.windows == (4, 5, 6)
        assert config.windows[SemanticType.LANDMARK] == 5

    @pytest.mark.parametrize("window", [0, 1, None, 10**12])
    @pytest.mark.parametrize("kind", ["global", "landmark", "noise"])
    def test_windows_from_nothing_but_itself_to_no_limit(self, kind, window):
        assert getattr(HSAConfig(**{f"{kind}_window": window}), f"{kind}_window") == window

    def test_hide_takes_names_and_numbers_and_is_canonical(self):
        written = [
            (("global", "PROCESS_NOISE"), ("KEY_EVENT", 2)),
            [[1, "noise"], [0, 2], ["GLOBAL_CONDITION", "NOISE"]],
            ((SemanticType.LANDMARK, SemanticType.NOISE), ("0", "2")),
        ]
        configs = [HSAConfig(hide=hide) for hide in written]
        assert all(config.hide == ((0, 2), (1, 2)) for config in configs)
        assert len(set(configs)) == 1
        pairs = [(query, key) for query in range(3) for key in range(3)]
        assert HSAConfig(hide=pairs[::-1]).hide == tuple(pairs)

    def test_layers_are_sorted_and_unique(self):
        assert HSAConfig(layers=[3, 1, 3]).layers == (1, 3)

    @pytest.mark.parametrize("name", ["default_type", "generated_type"])
    @pytest.mark.parametrize("value", ["KEY_EVENT", "noise", 2, SemanticType.GLOBAL])
    def test_types_take_aliases_and_numbers(self, name, value):
        assert SemanticType.parse(getattr(HSAConfig(**{name: value}), name)) == SemanticType.parse(value)


NUMBER = "a number ≥ 0"
FINITE = "a finite number ≥ 0"
WINDOW = "a whole number ≥ 0, or none"
PAIRS = "a list of pairs"
LAYERS = "a list of layer indices ≥ 0, or none"
TYPES = "GLOBAL_CONDITION, LANDMARK, KEY_EVENT"

REFUSED = [
    *(
        (HSAConfig, f"{kind}_decay", value, NUMBER)
        for kind in ("global", "landmark", "noise")
        for value in (True, "1")
    ),
    *((HSAConfig, f"{kind}_decay", -0.1, FINITE) for kind in ("global", "landmark", "noise")),
    *((HSAConfig, "noise_decay", value, FINITE) for value in (float("nan"), float("inf"), float("-inf"))),
    *((HSAConfig, "noise_decay", value, NUMBER) for value in (None, [0.5], 1j)),
    *(
        (HSAConfig, f"{kind}_window", value, WINDOW)
        for kind in ("global", "landmark", "noise")
        for value in (True, -1)
    ),
    *((HSAConfig, "noise_window", value, WINDOW) for value in (50.0, "50", float("inf"), [50])),
    *((HSAConfig, f"{kind}_turns", value, WINDOW) for kind in ("global", "landmark", "noise") for value in (True, -1)),
    *((HSAConfig, "noise_turns", value, WINDOW) for value in (1.0, 0.5, "1", float("inf"), [1])),
    *((HSAConfig, "hide", value, PAIRS) for value in (None, "GLOBAL", 2, [0, 2], [[0]], [[0, 1, 2]], ["02"], {0: 2})),
    *((HSAConfig, "hide", value, TYPES) for value in ([["GLOBAL", "NOIS"]], [[0, 3]], [[True, 0]], [[None, 0]])),
    *(
        (HSAConfig, "backend", value, "auto, reference, dense, blockwise, flex")
        for value in ("fast", "AUTO", None, [])
    ),
    *((HSAConfig, "layers", value, LAYERS) for value in (3, "all", [-1], [True], [0.0], ["0"], [None], {0: 1})),
    *((HSAConfig, "default_type", value, TYPES) for value in (None, "", "GLOBL", 3, True, 0.5)),
    *((HSAConfig, "generated_type", value, TYPES) for value in ("", "GLOBL", -1, False, [])),
    *(
        (FeedbackConfig, "token", value, "a non-empty text without spaces")
        for value in ("", " ", "a b", "a\n", 3, None)
    ),
    *((FeedbackConfig, "scope", value, "user, observation, assistant") for value in ("", "gpt", 1, ["user"])),
    *((FeedbackConfig, "train", value, "after, recovery") for value in ("", None, "before", True)),
    *((FeedbackConfig, "occurrence", value, "first, last, every") for value in ("First", "all", 0, None, [])),
    *((FeedbackConfig, "missing", value, "train, drop, error") for value in ("keep", True, None)),
    *((FeedbackConfig, "empty", value, "drop, error") for value in ("train", False, None)),
]


@pytest.mark.parametrize(("config_class", "field", "value", "allowed"), REFUSED)
def test_refusal_names_field_value_and_what_is_allowed(config_class, field, value, allowed):
    with pytest.raises(ValueError) as error:
        config_class(**{field: value})
    message = str(error.value)
    assert f"{config_class.__name__}.{field}" in message
    assert allowed in message
    culprit = {"[['GLOBAL', 'NOIS']]": "'NOIS'", "[[0, 3]]": "3", "[[True, 0]]": "True", "[[None, 0]]": "None"}
    assert culprit.get(repr(value), repr(value)) in message


class TestFromDict:
    def test_every_field_can_be_set(self):
        assert set(EVERYTHING_SET) == {field.name for field in dataclasses.fields(HSAConfig)}
        config = HSAConfig.from_dict(EVERYTHING_SET)
        assert config.hide == ((0, 2), (1, 2)) and config.layers == (1, 3) and config.noise_window is None

    @pytest.mark.parametrize(
        ("config_class", "key", "suggestion"),
        [
            (HSAConfig, "noise_windows", "noise_window"),
            (HSAConfig, "landmark_decy", "landmark_decay"),
            (HSAConfig, "backends", "backend"),
            (HSAConfig, "defaulttype", "default_type"),
            (FeedbackConfig, "tokens", "token"),
            (FeedbackConfig, "occurence", "occurrence"),
        ],
    )
    def test_unknown_key_is_refused_with_a_suggestion(self, config_class, key, suggestion):
        with pytest.raises(ValueError) as error:
            config_class.from_dict({key: 1})
        message = str(error.value)
        assert config_class.__name__ in message and f"unknown key {key!r}" in message
        assert f"Did you mean {suggestion!r}?" in message
        for field in dataclasses.fields(config_class):
            assert field.name in message

    def test_unknown_key_that_resembles_nothing_gets_no_suggestion(self):
        with pytest.raises(ValueError, match="unknown key 'zzz'. Allowed: landmark_decay"):
            HSAConfig.from_dict({"zzz": 1})

    @pytest.mark.parametrize("values", [None, True, "noise_window", [("noise_window", 50)], 3])
    def test_no_mapping(self, values):
        with pytest.raises(ValueError, match="HSAConfig: expected a mapping of options, got "):
            HSAConfig.from_dict(values)

    def test_preset_is_its_numbers(self):
        assert HSAConfig.from_dict({"preset": "agent"}) == HSAConfig(noise_decay=0.02, noise_window=64)
        assert "preset" not in HSAConfig.from_dict({"preset": "agent"}).to_dict()

    def test_options_beside_a_preset_win(self):
        given = {"preset": "agent", "noise_window": 100, "landmark_turns": 3, "labels": RULES}
        wanted = HSAConfig(noise_decay=0.02, noise_window=100, landmark_turns=3, rules=RULES)
        assert HSAConfig.from_dict(given) == wanted
        assert HSAConfig.from_dict({"preset": "agent", "noise_window": "none"}) == HSAConfig(
            noise_decay=0.02, noise_window=None
        )

    @pytest.mark.parametrize(("turns", "same"), [(1, {"noise_turns": 1}), (0, {"noise_turns": 0})])
    def test_turns_take_the_place_of_a_presets_window_and_decay(self, turns, same):
        assert HSAConfig.from_dict({"preset": "agent", "noise_turns": turns}) == HSAConfig(**same)
        agent = HSAConfig(noise_decay=0.02, noise_window=64)
        assert HSAConfig.from_dict({"preset": "agent", "noise_turns": None}) == agent

    @pytest.mark.parametrize("name", ["agents", "", None, 1, True, ["agent"]])
    def test_unknown_preset(self, name):
        with pytest.raises(ValueError, match=r"preset = .* is not allowed:.* agent"):
            HSAConfig.from_dict({"preset": name})

    def test_key_that_is_no_text(self):
        with pytest.raises(ValueError, match="unknown key 1"):
            HSAConfig.from_dict({1: 2})


CONFIGS = [
    HSAConfig(),
    HSAConfig.from_dict(EVERYTHING_SET),
    HSAConfig(noise_window=0, landmark_window=0, global_window=0, layers=(0,)),
    HSAConfig(noise_window=None, default_type=SemanticType.NOISE, generated_type=SemanticType.LANDMARK),
    HSAConfig(noise_turns=1),
]


class TestFiles:
    @pytest.mark.parametrize("config", CONFIGS)
    def test_save_and_load(self, config, tmp_path):
        path = config.save_pretrained(tmp_path / "deep" / "checkpoint")
        assert path == tmp_path / "deep" / "checkpoint" / "hsa_config.json"
        assert HSAConfig.from_pretrained(path.parent) == config
        assert HSAConfig.from_pretrained(str(path.parent)) == config
        assert [file.name for file in path.parent.iterdir()] == ["hsa_config.json"]

    @pytest.mark.parametrize("config", CONFIGS)
    def test_the_plain_values_survive_yaml_and_json(self, config):
        assert HSAConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config
        assert HSAConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    def test_saving_again_replaces(self, tmp_path):
        HSAConfig(noise_window=1, labels=[{"type": 0, "name": "x" * 1000}]).save_pretrained(tmp_path)
        HSAConfig(noise_window=2).save_pretrained(tmp_path)
        assert HSAConfig.from_pretrained(tmp_path) == HSAConfig(noise_window=2)

    def test_a_save_that_dies_leaves_the_old_file_whole(self, tmp_path, monkeypatch):
        HSAConfig(noise_window=1).save_pretrained(tmp_path)

        def full_disk(number):
            raise OSError("No space left on device")

        monkeypatch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            HSAConfig(noise_window=2).save_pretrained(tmp_path)
        assert HSAConfig.from_pretrained(tmp_path) == HSAConfig(noise_window=1)
        assert os.listdir(tmp_path) == ["hsa_config.json"]

    def test_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=f"No hsa_config.json in '{tmp_path}'"):
            HSAConfig.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "is not valid JSON"),
            ("", "is not valid JSON"),
            ("[]", "expected a mapping of options"),
            ('{"noise_windw": 3}', "unknown key 'noise_windw'"),
            ('{"noise_window": -3}', "noise_window = -3 is not allowed"),
            ('{"format_version": "1"}', "format_version = '1' is not allowed"),
            ('{"format_version": true}', "format_version = True is not allowed"),
            ('{"format_version": 2, "gone": 1}', "later version of hsa-factory .*format_version 2.*pip install -U"),
            ('{"layers": []}', "HSAConfig.layers = .*no layer"),
            ('{"noise_window": 3', "is not valid JSON: .*Copy it anew"),
            ("\x00\x01", "is not valid JSON"),
        ],
    )
    def test_broken_file(self, content, message, tmp_path):
        (tmp_path / "hsa_config.json").write_text(content)
        with pytest.raises(ValueError, match=f"^{tmp_path / 'hsa_config.json'}.*{message}"):
            HSAConfig.from_pretrained(tmp_path)

    def test_versions(self, tmp_path):
        path = HSAConfig(noise_window=3).save_pretrained(tmp_path)
        values = json.loads(path.read_text("utf-8"))
        assert values.pop("format_version") == 1 and values == json.loads(
            json.dumps(HSAConfig(noise_window=3).to_dict())
        )
        path.write_text(json.dumps(values), "utf-8")  # as it was before there were versions
        assert HSAConfig.from_pretrained(tmp_path) == HSAConfig(noise_window=3)


class TestRules:
    """`rules`, and `labels`, its former name."""

    @pytest.mark.parametrize("value", [None, "react", RULES])
    def test_either_name(self, value):
        config = HSAConfig(rules=value)
        assert config == HSAConfig(labels=value) == HSAConfig(rules=value, labels=value)
        assert (
            config == HSAConfig.from_dict({"labels": value}) == HSAConfig.from_dict({"labels": value, "rules": value})
        )
        assert config.labels == config.rules and "labels" not in config.to_dict()
        assert (config.rules is None) == (value is None)

    @pytest.mark.parametrize(
        ("rules", "labels"), [("react", "think-tags"), (RULES, "react"), ("react", RULES), (RULES, OTHER)]
    )
    def test_both_with_different_values(self, rules, labels, tmp_path):
        with pytest.raises(ValueError, match="both are given with different values"):
            HSAConfig(rules=rules, labels=labels)
        with pytest.raises(ValueError, match="both are given with different values"):
            HSAConfig.from_dict({"rules": rules, "labels": labels})
        values = {**HSAConfig(rules=rules).to_dict(), "labels": labels}
        (tmp_path / "hsa_config.json").write_text(json.dumps(values), "utf-8")
        with pytest.raises(ValueError, match="both are given with different values"):
            HSAConfig.from_pretrained(tmp_path)

    @pytest.mark.parametrize("name", ["rules", "labels"])
    @pytest.mark.parametrize("former", [None, "react", RULES])
    @pytest.mark.parametrize("new", [None, "think-tags", OTHER])
    def test_replace_by_either_name(self, name, former, new):
        config = HSAConfig(noise_window=7, rules=former)
        assert dataclasses.replace(config, **{name: new}) == HSAConfig(noise_window=7, rules=new)
        assert dataclasses.replace(config, noise_window=8) == HSAConfig(noise_window=8, rules=former)

    def test_a_file_of_before_is_read(self, tmp_path):
        values = {**HSAConfig().to_dict(), "noise_window": 9}
        del values["rules"]
        (tmp_path / "hsa_config.json").write_text(json.dumps({**values, "labels": RULES}), "utf-8")
        assert HSAConfig.from_pretrained(tmp_path) == HSAConfig(noise_window=9, rules=RULES)
        HSAConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
        written = json.loads((tmp_path / "hsa_config.json").read_text("utf-8"))
        assert written["rules"] == RULES and "labels" not in written

    @pytest.mark.parametrize("name", ["rules", "labels"])
    def test_an_error_names_the_option_that_was_given(self, name):
        with pytest.raises(ValueError, match=f"HSAConfig.{name}: rule 1, 'everything': type: Unknown"):
            HSAConfig(**{name: [{"type": "x"}]})
        with pytest.raises(ValueError, match=f"HSAConfig.{name}: rule 1, 'everything': type: Unknown"):
            HSAConfig.from_dict({name: [{"type": "x"}]})

    def test_nothing_from_outside_changes_it(self):
        rules = copy.deepcopy(RULES)
        config = HSAConfig(rules=rules)
        rules[0]["tag"].append("plan")
        rules.append({"type": "NOISE"})
        config.to_dict()["rules"].append({"type": "NOISE"})
        config.to_dict()["rules"][0]["tag"].append("plan")
        assert config == HSAConfig(rules=RULES) and config.to_dict()["rules"] == RULES
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.labels = None

    @pytest.mark.parametrize("options", [{}, {"rules": "react"}, {"rules": RULES}, EVERYTHING_SET])
    def test_equal_configurations_are_one_key(self, options):
        config = HSAConfig(**options)
        copies = [
            HSAConfig(**copy.deepcopy(options)),
            copy.deepcopy(config),
            pickle.loads(pickle.dumps(config)),
            dataclasses.replace(config),
            HSAConfig.from_dict(config.to_dict()),
        ]
        assert all(other == config and hash(other) == hash(config) for other in copies)
        assert len({config, *copies, HSAConfig(rules=OTHER)}) == 2

    def test_the_types_of_what_has_none(self):
        assert (HSAConfig().default, HSAConfig().generated) == (SemanticType.GLOBAL, SemanticType.GLOBAL)
        assert HSAConfig(default_type="noise").generated is SemanticType.NOISE
        config = HSAConfig(default_type=2, generated_type="KEY_EVENT")
        assert (config.default, config.generated) == (SemanticType.NOISE, SemanticType.LANDMARK)


def test_the_example_of_the_docstring():
    """The weights of the last token are those of the added logits that the table there shows."""
    semantic_ids = torch.tensor([[0, 2, 2, 1, 0]])
    query = torch.zeros(1, 1, 5, 5)
    value = torch.eye(5)[None, None]
    weights = hsa_attention(query, query, value, semantic_ids, HSAConfig(noise_window=2), backend="reference")[
        0, 0, -1
    ]
    added = torch.tensor([0, -torch.inf, -0.5 * 2, -0.001 * 1, 0])
    torch.testing.assert_close(weights, added.softmax(0))
    assert "added logit  0         −∞       −0.5 · 2    −0.001 · 1  0" in HSAConfig.__doc__


class TestTurns:
    def test_noise_has_no_window_and_no_decay_where_turns_are_given_alone(self):
        config = HSAConfig(noise_turns=1)
        assert (config.noise_window, config.noise_decay, config.turns) == (None, 0.0, (None, None, 1))
        assert config == HSAConfig(noise_turns=1, noise_window=None, noise_decay=0)
        config = HSAConfig(noise_turns=1, noise_window=50, noise_decay=0.5)
        assert (config.noise_window, config.noise_decay) == (50, 0.5)
        config = HSAConfig(landmark_turns=4)
        assert (config.landmark_decay, config.noise_window, config.noise_decay) == (0.001, 50, 0.5)

    def test_none_is_a_value_and_not_left_out(self):
        assert HSAConfig(noise_window=None).noise_window is None
        assert HSAConfig(noise_window=None).noise_decay == 0.5
        with pytest.raises(ValueError, match="HSAConfig.noise_decay = None is not allowed"):
            HSAConfig(noise_turns=1, noise_decay=None)

    def test_a_file_says_what_holds(self, tmp_path):
        written = json.loads(HSAConfig(noise_turns=0).save_pretrained(tmp_path).read_text("utf-8"))
        assert {name: written[name] for name in ("noise_turns", "noise_window", "noise_decay")} == {
            "noise_turns": 0,
            "noise_window": None,
            "noise_decay": 0.0,
        }

    def test_a_file_of_before_turns_is_read(self, tmp_path):
        values = {name: value for name, value in HSAConfig().to_dict().items() if not name.endswith("_turns")}
        (tmp_path / "hsa_config.json").write_text(json.dumps(values), "utf-8")
        saved = HSAConfig.from_pretrained(tmp_path)
        assert saved == HSAConfig() and saved.attention_rules() == HSAConfig().attention_rules()

    def test_replace_keeps_what_holds(self):
        config = dataclasses.replace(HSAConfig(noise_turns=1), noise_turns=2)
        assert (config.noise_turns, config.noise_window, config.noise_decay) == (2, None, 0.0)


class TestAttentionRules:
    @pytest.mark.parametrize(
        "options",
        [
            {"backend": "reference"},
            {"default_type": "NOISE"},
            {"generated_type": 1},
            {"labels": "react"},
            {"hide": []},
        ],
    )
    def test_equal_where_the_attention_is(self, options):
        assert HSAConfig(**options).attention_rules() == HSAConfig().attention_rules()

    @pytest.mark.parametrize(
        "options",
        [
            {"landmark_decay": 0.002},
            {"noise_decay": 0.25},
            {"global_decay": 0.1},
            {"landmark_window": 10},
            {"noise_window": None},
            {"global_window": 10},
            {"landmark_turns": 1},
            {"noise_turns": 0, "noise_window": 50, "noise_decay": 0.5},
            {"global_turns": 0},
            {"hide": [[0, 2]]},
            {"layers": [0]},
        ],
    )
    def test_different_where_the_attention_is(self, options):
        assert HSAConfig(**options).attention_rules() != HSAConfig().attention_rules()

    def test_every_option_is_sorted_into_one_of_the_two(self):
        neutral = {"backend", "default_type", "generated_type", "rules"}
        kinds = ("global", "landmark", "noise")
        decisive = {f"{kind}_{what}" for kind in kinds for what in ("decay", "window", "turns")}
        assert {field.name for field in dataclasses.fields(HSAConfig)} == neutral | decisive | {"hide", "layers"}


class TestFeedbackRulesThatExcludeEachOther:
    def test_recovery_knows_no_last_marker(self):
        with pytest.raises(ValueError, match="FeedbackConfig.occurrence = 'last' is not allowed.*every marker counts"):
            FeedbackConfig(train="recovery", occurrence="last")
        assert FeedbackConfig(train="recovery", occurrence="every").train == "recovery"

    @pytest.mark.parametrize("scope", ["assistant", "function", "system"])
    def test_recovery_needs_a_role_that_answers(self, scope):
        with pytest.raises(ValueError, match=f"FeedbackConfig.scope = '{scope}' is not allowed.*user or observation"):
            FeedbackConfig(train="recovery", scope=scope)
        assert FeedbackConfig(scope=scope).scope == scope


@pytest.mark.parametrize(("typo", "meant"), [("context_paralel", "context_parallel"), ("prset", "preset")])
def test_suggestions_know_every_key_of_the_block(typo, meant):
    with pytest.raises(ValueError, match=f"Did you mean '{meant}'.*Allowed: .*rules, preset, context_parallel"):
        HSAConfig.from_dict({typo: 2})
    with pytest.raises(ValueError, match="context_parallel is no rule.*enable_hsa"):
        HSAConfig.from_dict({"context_parallel": 2})
