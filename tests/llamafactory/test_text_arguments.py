"""Words that YAML reads as true, false or a number, in options that take text."""

import json

import pytest

from hsa_factory.llamafactory.arguments import takes_text, with_text
from hsa_factory.training_file import read_training_file


def read(tmp_path, text, *overrides, name="train.yaml"):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return with_text(read_training_file(path, overrides)).args


@pytest.mark.parametrize("word", ["no", "NO", "off", "on", "yes", "007", "1e5", "1_000", "true"])
@pytest.mark.parametrize("option", ["dataset", "run_name", "model_revision", "output_dir", "tokenized_path"])
def test_names_stay_as_written(tmp_path, option, word):
    assert read(tmp_path, "stage: sft", f"{option}={word}")[option] == word
    assert read(tmp_path, f"{option}: {word}")[option] == word
    assert read(tmp_path, f"{option}: something", f"{option}={word}")[option] == word


@pytest.mark.parametrize("option", ["save_strategy", "eval_strategy", "logging_strategy"])
def test_a_strategy_may_be_no(tmp_path, option):
    from llamafactory.hparams import TrainingArguments

    (value,) = read(tmp_path, "{}", f"{option}=no").values()
    assert getattr(TrainingArguments(str(tmp_path), use_cpu=True, **{option: value}), option).value == "no"
    assert read(tmp_path, f"{option}: no") == {option: "no"}


def test_what_is_no_text_stays(tmp_path):
    given = {
        **{"bf16": True, "do_train": False, "learning_rate": 1e-5, "seed": 7, "resume_from_checkpoint": True},
        **{"mixture_of_depths": False, "deepspeed": False, "report_to": False, "of_nobody": False, "max_samples": 3},
    }
    words = {True: "yes", False: "no"}
    overrides = [f"{name}={words[value] if isinstance(value, bool) else value}" for name, value in given.items()]
    assert read(tmp_path, "{}", *overrides) == given
    assert read(tmp_path, "\n".join(line.replace("=", ": ") for line in overrides)) == given


def test_a_value_that_the_file_writes_as_something_else_stays(tmp_path):
    assert read(tmp_path, "seed: 7\nrun_name: ${seed}")["run_name"] == 7
    assert read(tmp_path, "run_name: 'on'\ntemplate: null") == {"run_name": "on", "template": None}
    assert read(tmp_path, json.dumps({"run_name": False}), name="train.json") == {"run_name": False}
    assert read(tmp_path, "run_name: 'on'", "run_name=no") == {"run_name": "no"}


def test_a_choice_takes_its_own_words_only():
    assert takes_text("save_strategy", "no") and not takes_text("mixture_of_depths", "no")
    assert not takes_text("bf16", "no") and not takes_text("not_an_option", "no")
