"""A training file: LLaMA-Factory's arguments and the two blocks, from the file and the command line."""

import json

import pytest

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.training_file import SAVED, is_training_file, read_training_file
from hsa_factory.user_errors import UserError


@pytest.fixture
def read(tmp_path):
    def read(text, *overrides, name="train.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return read_training_file(path, overrides)

    return read


class TestBlocks:
    @pytest.mark.parametrize(
        ("text", "hsa", "feedback"),
        [
            ("", None, None),
            ("hsa: true", True, None),
            ("hsa: false", None, None),
            ("hsa: null", None, None),
            ("hsa: none", None, None),
            ("feedback: None", None, None),
            ("hsa: {}", HSAConfig(), None),
            ("hsa: {noise_window: 20, hide: [[GLOBAL, NOISE]]}", HSAConfig(noise_window=20, hide=((0, 2),)), None),
            ("hsa: {noise_window: null, layers: [1, 0]}", HSAConfig(noise_window=None, layers=(0, 1)), None),
            ("hsa: {noise_window: none, layers: None}", HSAConfig(noise_window=None), None),
            ("feedback: {scope: none}", None, FeedbackConfig()),
            ("feedback: true", None, FeedbackConfig()),
            ("feedback: false", None, None),
            ("feedback: null", None, None),
            ("feedback: {token: <|feedback|>, occurrence: last}", None, FeedbackConfig(occurrence="last")),
            ("hsa: true\nfeedback: {missing: drop}", True, FeedbackConfig(missing="drop")),
        ],
    )
    def test_blocks(self, read, text, hsa, feedback):
        file = read(f"stage: sft\nlr: 1.0e-5\n{text}\n")
        assert (file.hsa, file.feedback) == (hsa, feedback)
        assert type(file.hsa) is type(hsa)
        assert file.args == {"stage": "sft", "lr": 1e-5}
        assert file.is_plain is (hsa is None and feedback is None)
        assert file.hsa_off is (text in ("hsa: false", "hsa: none"))
        assert file.asked_for == (hsa or (False if file.hsa_off else SAVED))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("hsa: {noise_windw: 3}", "hsa: HSAConfig: unknown key 'noise_windw'. Did you mean 'noise_window'?"),
            ("feedback: {occurence: last}", "feedback: .*unknown key 'occurence'. Did you mean 'occurrence'?"),
            ("hsa: {noise_window: -1}", "hsa: HSAConfig.noise_window = -1 is not allowed"),
            ("hsa: {noise_window: true}", "hsa: HSAConfig.noise_window = True is not allowed"),
            ("hsa: {default_type: GLOBL}", "hsa: HSAConfig.default_type: Unknown semantic type 'GLOBL'"),
            ("hsa: 50", "hsa: expected true, false or a mapping of options, got 50"),
            ("hsa: on_please", "hsa: expected true, false or a mapping of options, got 'on_please'"),
            ("feedback: [a]", r"feedback: expected true, false or a mapping of options, got \['a'\]"),
            ("hsa: 0", "hsa: expected true, false"),
            ("hsa: ''", "hsa: expected true, false"),
        ],
    )
    def test_refusal_names_the_block_and_the_option(self, read, text, message):
        with pytest.raises(ValueError, match=message):
            read(text)


class TestOverrides:
    @pytest.mark.parametrize("block", ["", "hsa: true", "hsa: false", "hsa:", "hsa: {}", "hsa: {noise_window: 7}"])
    def test_into_the_block(self, read, block):
        assert read(block, "hsa.noise_window=20").hsa == HSAConfig(noise_window=20)

    def test_keep_the_other_options_of_the_block(self, read):
        file = read("hsa: {noise_window: 7, noise_decay: 0.1}", "hsa.noise_decay=0.2", "hsa.hide=[[0,NOISE]]")
        assert file.hsa == HSAConfig(noise_window=7, noise_decay=0.2, hide=((0, 2),))

    @pytest.mark.parametrize(
        ("block", "override", "hsa", "feedback"),
        [
            ("hsa: {noise_window: 7}", "hsa=false", None, None),
            ("hsa: true", "hsa=null", None, None),
            ("", "hsa=true", True, None),
            ("feedback: {missing: drop}", "feedback=false", None, None),
            ("", "feedback=true", None, FeedbackConfig()),
            ("feedback: true", "feedback.missing=error", None, FeedbackConfig(missing="error")),
            ("", "feedback.token=<|feedback|>", None, FeedbackConfig()),
            ("", "hsa.noise_window=null", HSAConfig(noise_window=None), None),
        ],
    )
    def test_switch_blocks(self, read, block, override, hsa, feedback):
        file = read(block, override)
        assert (file.hsa, file.feedback) == (hsa, feedback)

    def test_of_plain_arguments(self, read):
        file = read("stage: sft\nlr: 1.0e-5\nnested: {a: 1, b: 2}", "lr=0.1", "nested.a=3", "new=x", "flag=true")
        assert file.args == {"stage": "sft", "lr": 0.1, "nested": {"a": 3, "b": 2}, "new": "x", "flag": True}

    def test_unknown_key(self, read):
        with pytest.raises(ValueError, match="hsa: .*Did you mean 'noise_window'?"):
            read("hsa: true", "hsa.noise_windo=3")


class TestWrittenWithoutAValue:
    """It says neither on nor off, neither a number nor none."""

    @pytest.mark.parametrize(
        ("text", "option"),
        [
            ("hsa:", "hsa"),
            ("hsa:  # noise_window: 20\n  # nothing else\n", "hsa"),
            ("hsa:\nnoise_window: 20", "hsa"),
            ("feedback:", "feedback"),
            ("hsa: true\nfeedback:\n", "feedback"),
            ("hsa:\n  noise_window:\n", "hsa.noise_window"),
            ("hsa: {rules: , noise_window: 3}", "hsa.rules"),
            ("hsa: {labels: }", "hsa.labels"),
            ("hsa: {rules: [{type: NOISE, role: }]}", "hsa.rules.0.role"),
            ("feedback:\n  scope:  # any\n", "feedback.scope"),
        ],
    )
    def test_in_the_file(self, read, text, option):
        with pytest.raises(UserError, match=f"train.yaml: `{option}:` has no value"):
            read(text)

    @pytest.mark.parametrize("block", ["", "hsa: true\nfeedback: true", "hsa: {noise_window: 3}"])
    @pytest.mark.parametrize(
        "override",
        ["hsa", "hsa=", "feedback", "hsa.noise_window", "hsa.noise_window= ", "hsa[rules]=", "feedback.scope="],
    )
    def test_on_the_command_line(self, read, block, override):
        with pytest.raises(UserError, match="has no value on the command line.*[Ww]rite"):
            read(block, override)

    @pytest.mark.parametrize("value", ["none", "null", "~"])
    def test_none_is_said_in_a_word(self, read, value):
        overrides = [f"hsa.{option}={value}" for option in ("noise_window", "layers", "rules", "generated_type")]
        assert read("hsa: {layers: [1], rules: react}", *overrides).hsa == HSAConfig(noise_window=None)
        assert read("", f"feedback.scope={value}").feedback == FeedbackConfig()

    def test_what_cannot_be_none(self, read):
        with pytest.raises(UserError, match="HSAConfig.noise_decay = 'none' is not allowed"):
            read("", "hsa.noise_decay=none")

    def test_hsa_in_no_layer(self, read):
        for text, override in (("hsa: {layers: []}", "x=1"), ("", "hsa.layers=[]")):
            with pytest.raises(UserError, match="HSAConfig.layers = .* no layer.*none for all"):
                read(text, override)

    def test_no_rule(self, read):
        with pytest.raises(UserError, match="there is no rule in it"):
            read("hsa: {rules: []}")

    @pytest.mark.parametrize("override", ["--hsa.noise_window=20", "--feedback=true", "--hsa"])
    def test_dashes(self, read, override):
        with pytest.raises(UserError, match="write options without dashes"):
            read("", override)

    def test_the_command_line_gives_what_the_file_leaves_empty(self, read):
        assert read("hsa: {noise_window: }", "hsa.noise_window=4").hsa == HSAConfig(noise_window=4)
        assert read("hsa: {noise_window: }", "hsa=false").hsa is None
        with pytest.raises(UserError, match="noise_decay:` has no value"):
            read("hsa: {noise_decay: }", "hsa.noise_window=4")


class TestRulesByEitherName:
    @pytest.mark.parametrize("name", ["rules", "labels"])
    @pytest.mark.parametrize(
        ("value", "rules"),
        [
            ("react", "react"),
            ("null", None),
            ("[{type: NOISE, role: user}]", [{"type": "NOISE", "role": "user"}]),
            ("[{preset: react},{type: NOISE}]", [{"preset": "react"}, {"type": "NOISE"}]),
        ],
    )
    def test_in_the_file_and_behind_it(self, read, name, value, rules):
        expected = HSAConfig(rules=rules)
        assert read(f"hsa: {{{name}: {value}}}").hsa == expected
        assert read("hsa: true", f"hsa.{name}={value}").hsa == expected
        assert read("hsa: {noise_window: 50}", f"hsa.{name}={value}").hsa == expected

    @pytest.mark.parametrize(("there", "here"), [("labels", "rules"), ("rules", "labels")])
    def test_two_different_values_are_an_error(self, read, there, here):
        with pytest.raises(UserError, match="hsa: .*both are given with different values"):
            read(f"hsa: {{{there}: react}}", f"hsa.{here}=think-tags")
        assert read(f"hsa: {{{there}: react}}", f"hsa.{here}=react").hsa == HSAConfig(rules="react")

    def test_a_misspelt_preset(self, read):
        with pytest.raises(
            UserError, match="hsa: HSAConfig.rules: rules 'reakt': neither a preset nor a file. Did you"
        ):
            read("hsa: true", "hsa.rules=reakt")


class TestFiles:
    def test_json(self, read):
        text = json.dumps({"stage": "sft", "hsa": {"noise_window": None}, "feedback": True})
        file = read(text, "stage=dpo", name="train.json")
        assert file.args == {"stage": "dpo"}
        assert file.hsa == HSAConfig(noise_window=None) and file.feedback == FeedbackConfig()

    @pytest.mark.parametrize("text", ["", "\n", "  \n# only a comment\n", "{}", "---\n"])
    def test_empty_file_is_plain(self, read, text):
        file = read(text)
        assert file.args == {} and file.is_plain

    def test_empty_file_takes_overrides(self, read):
        assert read("", "stage=sft").args == {"stage": "sft"}

    def test_non_ascii_text_survives(self, read):
        assert read("prompt: 打开冰箱 ü").args == {"prompt": "打开冰箱 ü"}

    @pytest.mark.parametrize(
        "text",
        [
            "hsa: {noise_window: 3",
            "a: 1\n  b: 2",
            "a: [1, 2",
            "\tkey: 1",
            "a: ${nothing}",
            "- a\n- b",
            "[1, 2]",
            "3",
            "&x [*x]",
            "!!python/object:os.system x",
            "a: \x00",
        ],
    )
    def test_what_is_not_a_yaml_mapping_is_an_error_that_names_the_file(self, read, text):
        with pytest.raises(ValueError, match="broken.yaml: "):
            read(text, name="broken.yaml")

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{'a': 1}"])
    def test_what_is_not_a_json_mapping_is_an_error_that_names_the_file(self, read, text):
        with pytest.raises(ValueError, match="broken.json: "):
            read(text, name="broken.json")

    def test_bytes_that_are_no_text(self, tmp_path):
        (tmp_path / "broken.yaml").write_bytes(b"a: \xff\xfe")
        with pytest.raises(ValueError, match="broken.yaml: "):
            read_training_file(tmp_path / "broken.yaml")

    @pytest.mark.parametrize("name", ["missing.yaml", "."])
    def test_missing_file_is_named(self, tmp_path, name):
        with pytest.raises(UserError, match=f"{tmp_path / name}.* does not exist"):
            read_training_file(tmp_path / name)

    def test_path_may_be_text(self, tmp_path):
        (tmp_path / "a.yaml").write_text("x: 1")
        assert read_training_file(str(tmp_path / "a.yaml")).args == {"x": 1}


@pytest.mark.parametrize("argument", ["a.yaml", "dir/b.yml", "c.json"])
def test_what_names_a_training_file(argument):
    assert is_training_file(argument)


@pytest.mark.parametrize("argument", ["yaml", "a.yaml.txt", "a.toml", "stage=sft", "--yaml", ""])
def test_what_does_not(argument):
    assert not is_training_file(argument)
