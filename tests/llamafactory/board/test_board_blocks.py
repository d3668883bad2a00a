"""From fields to blocks: what a run reads is what the fields say, and what they cannot say is refused in their language."""

import json

import pytest

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.llamafactory.board.blocks import check_args, read_blocks, with_blocks
from hsa_factory.llamafactory.board.fields import FIELDS, INITIAL, OTHER_OPTIONS
from hsa_factory.llamafactory.board.texts import label_of
from hsa_factory.user_errors import UserError


def on(**values):
    assert values.keys() <= INITIAL.keys()
    return {**INITIAL, "hsa_mode": "on", **values}


def test_a_fresh_board_asks_for_nothing():
    assert read_blocks(INITIAL, "en") == {}


def test_switched_on_without_more_takes_what_was_saved():
    assert read_blocks(on(feedback_on=True), "en") == {"hsa": True, "feedback": {"token": "<|feedback|>"}}


def test_off_survives_what_the_board_leaves_out():
    from llamafactory.webui.common import _clean_cmd

    args = _clean_cmd(with_blocks({"stage": "sft"}, read_blocks(on(hsa_mode="off"), "en"), "en"))
    assert check_args(args, "en").hsa_off
    assert check_args(_clean_cmd(with_blocks({"hsa": False}, {}, "en")), "en").hsa_off  # of the extra arguments


def test_every_field_sets_its_option():
    numbers = {field.name: str(number) for number, field in enumerate(f for f in FIELDS if f.is_number)}
    rest = {"hsa_rules": "react", "hsa_default_type": "NOISE", "hsa_generated_type": "LANDMARK"}
    other = {"hide": [["GLOBAL", "NOISE"]], "backend": "dense"}
    feedback = {"token": "<wrong>", "occurrence": "every", "missing": "drop", "empty": "error", "scope": "user"}
    values = on(**numbers, **rest, hsa_options=json.dumps(other), feedback_on=True)
    values |= {f"feedback_{option}": value for option, value in feedback.items()}
    read = check_args({"stage": "sft", **read_blocks(values, "en")}, "en")
    options = {name.removeprefix("hsa_"): value for name, value in rest.items()}
    options |= {name.removeprefix("hsa_"): int(value) for name, value in numbers.items()}
    assert read.hsa == HSAConfig(**options, **other)
    assert read.feedback == FeedbackConfig(**feedback)


def test_none_and_small_numbers():
    blocks = read_blocks(on(hsa_noise_window=" None ", hsa_noise_decay="1e-3", hsa_landmark_turns="０"), "en")
    assert HSAConfig.from_dict(blocks["hsa"]) == HSAConfig(noise_window=None, noise_decay=0.001, landmark_turns=0)


@pytest.mark.parametrize("field", [field for field in FIELDS if field.is_number], ids=lambda field: field.option)
@pytest.mark.parametrize("lang", ["en", "zh", "ko"])
def test_what_is_no_such_number_is_refused(field, lang):
    for text in ["abc", "-1", "nan", "inf", "0,5", "1;2", *(["none"] if field.is_decay else ["0.5", "1e3", "1_0"])]:
        with pytest.raises(UserError) as error:
            read_blocks(on(**{field.name: text}), lang)
        assert label_of(field.name, lang) in str(error.value) and repr(text) in str(error.value)
        assert ("无效" if lang == "zh" else "not allowed") in str(error.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hsa_rules": "reakt"}, "react"),
        ({OTHER_OPTIONS: "{"}, "Other options"),
        ({OTHER_OPTIONS: "[1]"}, "JSON object"),
        ({OTHER_OPTIONS: '{"noise_widow": 3}'}, "noise_window"),
        ({OTHER_OPTIONS: '{"context_parallel": 0}'}, "context_parallel = 0 is not allowed"),
        ({OTHER_OPTIONS: '{"noise_window": 3}', "hsa_noise_window": "4"}, "twice"),
        ({OTHER_OPTIONS: '{"hide": 1, "hide": 2}'}, "twice"),
        ({"feedback_on": True, "feedback_token": ""}, "token"),
        ({"feedback_on": True, "feedback_token": "two words"}, "token"),
        ({"feedback_on": True, "feedback_train": "recovery", "feedback_occurrence": "last"}, "occurrence"),
        ({"feedback_on": True, "feedback_missing": "keep"}, "Missing"),
        ({"hsa_mode": "perhaps"}, "perhaps"),
        ({"hsa_default_type": "LOUD"}, "Default type"),
    ],
)
def test_what_is_not_allowed_is_refused(values, said):
    with pytest.raises(UserError, match=said):
        read_blocks(on(**values), "en")


def test_how_many_processes_share_a_row_is_no_rule():
    blocks = read_blocks(on(**{OTHER_OPTIONS: '{"context_parallel": 2}', "hsa_noise_window": "7"}), "en")
    read = check_args({"stage": "sft", **blocks}, "en")
    assert (read.hsa, read.context_parallel) == (HSAConfig(noise_window=7), 2)


def test_fields_that_are_not_shown_are_not_read():
    assert read_blocks({**INITIAL, "hsa_noise_window": "abc", "feedback_token": ""}, "en") == {}


def test_a_block_is_given_once():
    with pytest.raises(UserError, match="Extra arguments"):
        with_blocks({"hsa": {"noise_window": 3}}, {"hsa": True}, "en")
    assert with_blocks({"hsa": {"noise_window": 3}}, {}, "en") == {"hsa": {"noise_window": 3}}


def test_arguments_are_checked_as_a_run_would(monkeypatch):
    with pytest.raises(UserError, match="loss_weights"):
        check_args({"loss_weights": {"nonsense": 1}}, "en")
    with pytest.raises(UserError, match="与 Feedback.*stage: nonsense"):
        check_args({"hsa": True, "stage": "nonsense"}, "zh")
    assert check_args({"stage": "nonsense"}, "en").is_plain
    monkeypatch.setenv("USE_V1", "1")
    with pytest.raises(UserError, match="USE_V1"):
        check_args({"hsa": True, "stage": "sft"}, "en")


def test_the_lists_of_choices_are_those_of_the_configurations():
    for field in FIELDS:
        if field.block == "feedback" and field.choices:
            with pytest.raises(ValueError) as error:
                FeedbackConfig(**{field.option: "?"})
            allowed = str(error.value).partition("one of ")[2].partition(", or none")[0].rstrip(".").split(", ")
            assert [choice for choice in field.choices if choice != "any"] == allowed
