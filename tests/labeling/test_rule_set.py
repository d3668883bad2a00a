"""Rules: what may be said in them, what is refused and how, presets, plain values."""

import json
import pickle

import pytest

from hsa_factory import HSAConfig, SemanticType
from hsa_factory.labeling.matching import Message, label_messages
from hsa_factory.labeling.rule import Rule
from hsa_factory.labeling.rule_set import RuleSet, preset_names, read_rules


G, L, N = SemanticType


class TestRule:
    def test_one_value_is_a_list_of_one(self):
        rule = Rule(type="landmark", role="gpt", tag="act", verbs="take", turn="last")
        assert (rule.type, rule.role, rule.tag, rule.verbs, rule.turn) == (
            L,
            ("assistant",),
            ("act",),
            ("take",),
            (-1,),
        )

    @pytest.mark.parametrize(
        ("names", "role"),
        [
            (["user", "human"], "user"),
            (["assistant", "gpt"], "assistant"),
            (["observation", "tool"], "observation"),
            (["function", "function_call", "tool_call"], "function"),
            (["system"], "system"),
        ],
    )
    def test_roles_have_the_names_of_all_formats(self, names, role):
        assert Rule(type=0, role=names).role == (role,)

    def test_a_name_is_made_of_the_conditions(self):
        assert Rule(type=0, role="human", turn=0).name == "role user, turn 0"
        assert Rule(type=0).name == "everything"

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({}, "rule 2: type is missing: GLOBAL, LANDMARK or NOISE"),
            ({"type": "LANDMARKS"}, "rule 2, 'everything': type: Unknown semantic type 'LANDMARKS'. Allowed: GLOBAL"),
            ({"type": 0, "rol": "user"}, "rule 2: unknown key 'rol'. Did you mean 'role'.*Allowed: type, name, role"),
            ({"type": 0, "name": "x", "role": "usr"}, "rule 2, 'x': role = 'usr' is not allowed: one of system, user"),
            ({"type": 0, "role": []}, "role = .* at least one value"),
            ({"type": 0, "turn": "second"}, "turn = 'second' is not allowed: first, last, a whole number"),
            ({"type": 0, "turn": 1.5}, "turn = 1.5 is not allowed"),
            ({"type": 0, "turn": True}, "turn = True is not allowed"),
            ({"type": 0, "tag": "a", "verbs": [True]}, "verbs = True is not allowed: .*yes, no, on and off in quotes"),
            ({"type": 0, "tag": "<act>"}, "tag = '<act>' is not allowed: the name alone"),
            ({"type": 0, "pattern": "(a"}, "pattern = .* a regular expression .missing"),
            ({"type": 0, "pattern": ["a"]}, "pattern = .* a regular expression"),
            (
                {"type": 0, "tag": "a", "pattern": "b"},
                "pattern = 'b' is not allowed: not together with tag; write two",
            ),
            ({"type": 0, "verbs": "take"}, "verbs = 'take' is not allowed: only with tag or pattern"),
            ({"type": 0, "role": "user", "tool": "go"}, "tool = 'go' is not allowed: only with role function"),
            ({"type": 0, "media": "pictures"}, "media = 'pictures' is not allowed: one of image, video, audio"),
            ({"type": 0, "contains": " "}, "contains = ' ' is not allowed"),
            ({"type": 0, "name": 3}, "name = 3 is not allowed: a text"),
        ],
    )
    def test_errors_name_rule_field_value_and_what_is_allowed(self, values, message):
        with pytest.raises(ValueError, match=message):
            RuleSet.parse([{"type": 0}, values])

    def test_when_a_verdict_is_known_while_text_arrives(self):
        decided = lambda **values: Rule(type=0, **values).decided  # noqa: E731
        assert decided() == decided(role="user", turn="first") == decided(role="observation", tool="go") == "start"
        assert decided(tag="think") == decided(media="image") == "open"
        assert decided(tag="act", verbs="take") == decided(tag="tool_call", tool="go") == "close"
        assert decided(turn="last") == decided(contains="x") == decided(pattern="x") == decided(tool="go") == "end"


class TestRuleSet:
    @pytest.mark.parametrize("name", preset_names())
    def test_presets_survive_json(self, name):
        rules = RuleSet.parse(name)
        assert RuleSet.parse(json.loads(json.dumps(rules.to_list()))) == rules
        assert len(set(rules.names)) == len(rules)

    def test_the_presets(self):
        assert preset_names() == ["embodied-reasoner", "react", "think-tags", "tool-calls"]

    def test_a_preset_within_a_list(self):
        rules = RuleSet.parse({"rules": [{"type": "noise", "tag": "plan"}, {"preset": "think-tags"}]})
        assert rules.rules[1:] == RuleSet.parse("think-tags").rules

    def test_same_names_are_numbered(self):
        assert RuleSet.parse([{"type": 0, "role": "user"}] * 2).names == ["role user", "role user (2)"]

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (
                "embodied",
                "'embodied': neither a preset nor a file. Did you mean 'embodied-reasoner'. Presets: embodied",
            ),
            ([], "there is no rule"),
            ({"type": 0}, "expected a list of rules"),
            (["react"], "rule 1: expected a mapping such as"),
            ([{"preset": "none"}], "rule 1: preset = 'none' is not allowed: one of embodied-reasoner"),
            (3, "expected a list of rules, got 3"),
        ],
    )
    def test_what_is_no_rule_set(self, labels, message):
        with pytest.raises(ValueError, match=message):
            RuleSet.parse(labels)


class TestFiles:
    def test_yaml(self, tmp_path):
        path = tmp_path / "rules.yaml"
        path.write_text("- role: user\n  turn: first\n  type: GLOBAL\n- {tag: 思考, type: NOISE}\n", "utf-8")
        assert read_rules(str(path)) == RuleSet.parse(
            [{"role": "user", "turn": 0, "type": 0}, {"tag": "思考", "type": 2}]
        )

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"- {type: [", "not valid YAML"),
            ("- {type: 0, name: \u00e9}".encode("latin-1"), "not valid YAML in UTF-8"),
            (b"", "expected a list of rules, got None"),
            (b"- {type: 9}", "rule 1.*Unknown semantic type 9"),
        ],
    )
    def test_what_is_wrong_in_a_file_names_it(self, tmp_path, content, message):
        path = tmp_path / "rules.yaml"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"rules.yaml: .*{message}"):
            read_rules(str(path))


class TestConfig:
    def test_a_preset_stays_a_name(self):
        assert HSAConfig(rules="react").to_dict()["rules"] == "react"

    def test_a_file_is_kept_by_content(self, tmp_path):
        path = tmp_path / "rules.yaml"
        path.write_text("- {preset: react}\n- {type: NOISE}\n", "utf-8")
        config = HSAConfig(rules=str(path))
        path.unlink()
        config.save_pretrained(tmp_path)
        assert HSAConfig.from_pretrained(tmp_path) == config
        rules = config.to_dict()["rules"]
        assert rules[-1] == {"name": "everything", "type": "NOISE"} and len(rules) == len(RuleSet.parse("react")) + 1

    def test_errors_name_the_field(self):
        with pytest.raises(ValueError, match="HSAConfig.rules: rule 1, 'everything': type: Unknown"):
            HSAConfig(rules=[{"type": "x"}])


class TestByRole:
    RULES = RuleSet.parse(
        [{"role": "user", "type": 0}, {"type": 1, "tag": "act"}, {"role": ["gpt", "user"], "type": 2}]
    )

    @pytest.mark.parametrize(
        ("role", "numbers"), [("user", [0, 1, 2]), ("assistant", [1, 2]), ("system", [1]), ("narrator", [1])]
    )
    def test_those_that_may_hold_in_order(self, role, numbers):
        assert list(self.RULES.of_role(role)) == [self.RULES.rules[number] for number in numbers]

    def test_use_does_not_change_what_a_cache_of_data_is_known_by(self):
        rules = RuleSet.parse([{"name": "act", "type": 1, "tag": "act", "verbs": "take", "role": "gpt"}])
        before = pickle.dumps(rules)
        label_messages([Message("assistant", "I go. <act>take it</act>"), Message("narrator", "So it was.")], rules)
        assert pickle.dumps(rules) == before
