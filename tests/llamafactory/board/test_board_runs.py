"""What the Board previews, starts, saves and loads."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from llamafactory.extras.constants import TRAINING_STAGES

from hsa_factory import FeedbackConfig, HSAConfig
from hsa_factory.llamafactory.board import runs, samples
from hsa_factory.llamafactory.board.fields import INITIAL
from hsa_factory.llamafactory.data.report import DataReport
from hsa_factory.training_file import read_training_file


pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:gradio"),  # what it would show in a browser
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of gradio
]

ON = {
    "top__hsa_mode": "on",
    "top__hsa_noise_window": "20",
    "top__feedback_on": True,
    "top__feedback_occurrence": "last",
}
MEANT = (HSAConfig(noise_window=20), FeedbackConfig(occurrence="last"))


@pytest.fixture
def started(monkeypatch):
    """Commands that the Board starts; each ends at once."""
    import llamafactory.webui.runner as runner

    started = []

    class Process:
        pid, returncode = 0, 0

        def communicate(self, timeout):
            return "", ""

    def start(command, **options):
        started.append((command, options["env"]))
        return Process()

    monkeypatch.setattr(runner, "Popen", partial(runs.start, start))
    return started


def run(page, **changes):
    *_, last = page.runner.run_train(page.inputs(**changes))
    return page.text(last)


def test_untouched_it_is_llama_factorys_own(page):
    import llamafactory.webui.runner as runner

    data = page.inputs()
    for name in ("_parse_train_args", "_build_config_dict"):
        theirs = vars(runner.Runner)[name].hsa_original(page.runner, data)
        if name == "_build_config_dict":
            theirs = {key: value for key, value in theirs.items() if key.removeprefix("top.") not in INITIAL}
        assert getattr(page.runner, name)(data) == theirs
    args = page.runner._parse_train_args(data)
    (updates,) = page.runner.preview_train(data)
    assert page.text(updates) == runner.gen_cmd.hsa_original(args)


def test_what_is_previewed_is_what_runs(page, started, tmp_path):
    (updates,) = page.runner.preview_train(page.inputs(**ON))
    text = page.text(updates)
    assert "```bash\nhsa-factory train train.yaml\n```" in text
    previewed = tmp_path / "previewed.yaml"
    previewed.write_text(text.split("```yaml\n")[1].split("```")[0])

    assert "Finished" in run(page, **ON)
    ((command, environment),) = started
    assert command[:4] == [sys.executable, "-m", "hsa_factory.cli", "train"] and len(command) == 5
    assert environment["LLAMABOARD_ENABLED"] == "1" and "FORCE_TORCHRUN" not in environment
    read = read_training_file(command[4])
    assert (read.hsa, read.feedback) == MEANT
    assert read == read_training_file(previewed)


@pytest.mark.parametrize(
    ("label", "stage"), [(label, stage) for label, stage in TRAINING_STAGES.items() if stage != "ppo"]
)
def test_every_stage_is_previewed_and_started(page, started, label, stage):
    (updates,) = page.runner.preview_train(page.inputs(**ON, train__training_stage=label))
    text = page.text(updates)
    assert "hsa-factory train train.yaml" in text and f"\nstage: {stage}\n" in f"\n{text.split('```yaml')[1]}"
    assert "Finished" in run(page, **ON, train__training_stage=label)
    read = read_training_file(started[0][0][4])
    assert (read.hsa, read.feedback, read.args["stage"]) == (*MEANT, stage)


def test_deepspeed_goes_through_torchrun(page, started):
    (updates,) = page.runner.preview_train(page.inputs(**ON, train__ds_stage="2"))
    assert "FORCE_TORCHRUN=1 hsa-factory train" in page.text(updates)
    run(page, **ON, train__ds_stage="2")
    assert started[0][1]["FORCE_TORCHRUN"] == "1"


def test_evaluation_has_the_blocks(page):
    (updates,) = page.runner.preview_eval(page.data(**ON))
    read = yaml.safe_load(page.text(updates, "eval").split("```yaml\n")[1].split("```")[0])
    assert read["hsa"] == {"noise_window": 20} and read["feedback"]["occurrence"] == "last" and read["do_predict"]


def test_rules_saved_with_a_checkpoint_are_previewed_as_ours(page, tmp_path):
    HSAConfig().save_pretrained(tmp_path / "trained")
    (updates,) = page.runner.preview_train(page.inputs(top__model_path=str(tmp_path / "trained")))
    assert "hsa-factory train" in page.text(updates) and "\nhsa:" not in page.text(updates)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"top__hsa_noise_window": "abc"}, "NOISE window: 'abc' is not allowed"),
        ({"top__hsa_noise_window": "abc", "top__lang": "zh"}, "NOISE 窗口：'abc' 无效"),
        ({"top__hsa_rules": "no/such.yaml"}, "no/such.yaml"),
        ({"train__extra_args": '{"hsa": true}'}, "given twice"),
        ({"train__extra_args": '{"stage": "nonsense"}'}, "stage: nonsense"),
        ({"train__learning_rate": "fast"}, "fast"),
        ({"train__training_stage": "PPO", "train__reward_model": "reward"}, "`stage: ppo` does not start"),
        ({"train__training_stage": "Pre-Training", "top__hsa_noise_turns": "1"}, "hsa.noise_turns: turns count"),
        ({"train__training_stage": "Pre-Training", "top__feedback_scope": "user"}, "feedback.scope = 'user'"),
    ],
)
def test_what_is_wrong_is_said_before_a_run_starts(page, started, changes, said):
    for happening in (page.runner.run_train, page.runner.preview_train):
        (updates,) = happening(page.inputs(**{**ON, **changes}))
        assert said in page.text(updates)
    assert said in page.text(page.runner.save_args(page.inputs(**{**ON, **changes})))
    assert not started and not os.path.exists("saves") and not os.path.exists("llamaboard_config")


def test_a_saved_configuration_comes_back(page):
    page.runner.save_args(page.inputs(**ON))
    saved = yaml.safe_load(Path("llamaboard_config/mine.yaml").read_text())
    ours = {name for name in saved if name.removeprefix("top.") in INITIAL}
    assert ours == {name.replace("__", ".") for name in ON}
    loaded = page.runner.load_args("en", "mine.yaml")
    wanted = {
        **{f"top.{name}": value for name, value in INITIAL.items()},
        **{k.replace("__", "."): v for k, v in ON.items()},
    }
    assert {name: loaded[page.manager.get_elem_by_id(name)] for name in wanted} == wanted


def test_a_configuration_without_ours_switches_them_off(page):
    page.runner.save_args(page.inputs())
    loaded = page.runner.load_args("en", "mine.yaml")
    assert {name: loaded[page.manager.get_elem_by_id(f"top.{name}")] for name in INITIAL} == INITIAL
    assert len(page.runner.load_args("en", "other.yaml")) == 1  # not found: nothing changes


def test_a_configuration_is_restored_with_its_output_directory(page, started):
    run(page, **ON)
    restored = page.runner.check_output_dir("en", "Custom", "full", "run")
    assert restored[page.manager.get_elem_by_id("top.hsa_noise_window")] == "20"
    assert restored[page.manager.get_elem_by_id("top.hsa_noise_decay")] == ""


def test_the_table_stands_above_the_log_of_its_own_run(page, started):
    import llamafactory.webui.runner as runner

    run(page, **ON)
    directory = Path("saves/Custom/full/run")
    (directory / "running_log.txt").write_text("loading")
    assert runner.get_trainer_info("en", directory, True)[0] == "```\nloading\n```\n"
    path = DataReport().save(directory, {})
    log, *_ = runner.get_trainer_info("en", directory, True)
    assert log.index("Training data with HSA / Feedback") < log.index("loading")
    os.utime(path, (0, 0))
    assert "Training data" not in runner.get_trainer_info("en", directory, True)[0]


def test_the_preview_of_data_inspects_what_it_shows(page, monkeypatch):
    seen = []

    def inspect(command, **_):
        seen.append((command, yaml.safe_load(Path(command[4]).read_text())))
        Path(command[-1]).write_text('<p title="one">two</p>')
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(samples.subprocess, "run", inspect)
    changes = {**ON, "train__dataset": ["household", "other"], "train__val_size": 0.5, "train__packing": True}
    *_, shown = samples.show_samples(page.runner, page.data(**changes), True, 3)
    ((command, args),) = seen
    assert "--in-file" in command  # a page of the preview holds the samples of the file, left out or not
    assert command[command.index("--samples") + 1] == "6-7" and command[command.index("--split") + 1] == "train"
    assert args["dataset"] == "household" and args["max_samples"] == 8 and args["val_size"] == 0
    assert args["hsa"] == {"noise_window": 20} and not args["packing"]
    assert 'srcdoc="&lt;p title=&quot;one&quot;&gt;' in shown and "allow-same-origin" not in shown

    *_, shown = samples.show_samples(page.runner, page.data(top__hsa_mode="on", top__hsa_noise_window="<b>"), True, 0)
    assert "&lt;b&gt;" in shown and len(seen) == 1
    failed = subprocess.CompletedProcess([], 2, stderr="hsa-factory: no such <data>")
    monkeypatch.setattr(samples.subprocess, "run", lambda *_, **__: failed)
    *_, shown = samples.show_samples(page.runner, page.data(**ON), True, 0)
    assert "no such &lt;data&gt;" in shown
