# ruff: noqa: E402
"""The quickstart: its data is sound and reproducible, its training files are the examples, its verdict is right."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from forked import start


for module in ("yaml", "omegaconf", "rich", "PIL"):
    pytest.importorskip(module)

from PIL import Image, ImageChops

from hsa_factory import FeedbackConfig, cli
from hsa_factory.quickstart.display import Outcome, data_table, read_log
from hsa_factory.quickstart.recipes import DATA_DIR, RECIPES, write_examples
from hsa_factory.quickstart.run import run_quickstart
from hsa_factory.tiny import build_tokenizer
from hsa_factory.training_file import read_training_file
from hsa_factory.user_errors import UserError


ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TOOLS = ROOT / "tools"
MARKER = "<|feedback|>"


def load(name):
    return json.loads((DATA_DIR / name).read_text(encoding="utf-8"))


class TestData:
    def test_messages_alternate_and_are_typed(self):
        for item in load("trajectories.json") + load("trajectories_text.json"):
            roles = [message["role"] for message in item["messages"]]
            assert roles == ["system"] + ["user", "assistant"] * (len(roles) // 2)
            assert 8 <= len(roles) - 1 <= 14
            types = [message["semantic_type"] for message in item["messages"]]
            assert types[:2] == ["GLOBAL_CONDITION"] * 2
            assert set(types[2:]) == {"LANDMARK", "NOISE"}

    def test_two_of_three_have_one_marker_at_the_start_of_a_user_turn(self):
        marked = 0
        for item in load("trajectories.json"):
            holders = [message for message in item["messages"] if MARKER in message["content"]]
            assert len(holders) <= 1
            marked += len(holders)
            assert all(holder["role"] == "user" and holder["content"].startswith(MARKER) for holder in holders)
        assert marked == 16 and len(load("trajectories.json")) == 24

    def test_every_placeholder_has_its_picture(self):
        for item in load("trajectories.json"):
            text = "".join(message["content"] for message in item["messages"])
            assert text.count("<image>") == len(item["images"])
            assert all((DATA_DIR / image).is_file() for image in item["images"])

    def test_text_only_is_the_same_without_pictures(self):
        for item, text in zip(load("trajectories.json"), load("trajectories_text.json"), strict=True):
            assert list(text) == ["messages"]
            for message, plain in zip(item["messages"], text["messages"], strict=True):
                assert plain["content"] == message["content"].replace("<image>", "")

    def test_trajectories_are_short_in_tokens(self):
        corpus = (DATA_DIR / "corpus.txt").read_text(encoding="utf-8")
        tokenizer = build_tokenizer(corpus.splitlines(keepends=True))
        assert len(tokenizer) == 1024
        for item in load("trajectories.json"):
            text = "".join(f"<|im_start|>user\n{message['content']}<|im_end|>\n" for message in item["messages"])
            assert len(tokenizer(text)["input_ids"]) + 16 * len(item["images"]) < 700

    @pytest.mark.skipif(not TOOLS.is_dir(), reason="the tools are part of the repository only")
    def test_the_tool_writes_these_files(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(str(TOOLS))
        import make_quickstart_data

        make_quickstart_data.write(tmp_path, seed=0)
        made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
        assert made == sorted(path.relative_to(DATA_DIR) for path in DATA_DIR.rglob("*.*"))
        for path in made:
            if path.suffix == ".png":  # the same pixels; the bytes depend on the compressor
                assert not ImageChops.difference(Image.open(tmp_path / path), Image.open(DATA_DIR / path)).getbbox()
            else:
                assert (tmp_path / path).read_bytes() == (DATA_DIR / path).read_bytes()


class TestTrainingFiles:
    @pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are part of the repository only")
    def test_examples_are_the_recipes(self, tmp_path):
        write_examples(tmp_path)
        for path in tmp_path.iterdir():
            assert (EXAMPLES / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8")

    @pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
    def test_files_are_valid_wherever_they_are(self, recipe, tmp_path):
        path = tmp_path / "a file.yaml"
        path.write_text(recipe.render(str(path), "my models/m", "d: #", 'say "out"', seed=7, epochs=0.5))
        parsed = read_training_file(path)
        assert parsed.args["model_name_or_path"] == f"my models/m/{recipe.model_type}"
        assert (parsed.args["dataset_dir"], parsed.args["output_dir"]) == ("d: #", 'say "out"')
        assert (parsed.args["seed"], parsed.args["num_train_epochs"]) == (7, 0.5)
        assert parsed.args["learning_rate"] == recipe.learning_rate
        assert parsed.args["save_strategy"] == "no"
        assert parsed.hsa.noise_window == 50
        assert parsed.feedback == FeedbackConfig()


class TestVerdict:
    @pytest.mark.parametrize(
        ("losses", "learnt"),
        [
            ([6.0, 6.0, 6.0, 5.0, 3.9, 3.9, 3.9], True),
            ([6.0, 6.0, 6.0, 5.0, 4.1, 4.1, 4.1], False),
            ([6.0, 6.0, 6.0, math.nan, math.nan, math.nan], False),
            ([], False),
        ],
    )
    def test_loss_must_fall_by_a_third(self, losses, learnt):
        assert Outcome("run", "Run", losses, 1.0, None, None, {}).learnt is learnt

    def test_log_being_written(self, tmp_path):
        path = tmp_path / "trainer_log.jsonl"
        assert read_log(path) == []
        path.write_text('{"current_steps": 1, "loss": 2.5}\n{"current_steps": 2}\n{"current_st')
        assert [entry["loss"] for entry in read_log(path)] == [2.5]

    def test_datasets_are_listed_once(self):
        account = {"samples": 2, "with_marker": 1, "dropped": {"no marker": 1}, "trained_share": 0.25}
        account["tokens"] = {"GLOBAL": 1, "LANDMARK": 1, "NOISE": 2}
        outcomes = [Outcome("run", "Run", [1.0], 1.0, None, None, {"datasets": {"d": account}})] * 2
        assert data_table(outcomes).row_count == 1


class TestDirectory:
    def test_earlier_results_are_kept_unless_told_otherwise(self, tmp_path, capsys):
        pytest.importorskip("llamafactory")
        (tmp_path / "runs").mkdir()
        with pytest.raises(UserError, match="already holds runs"):
            run_quickstart(tmp_path)
        assert cli.main(["quickstart", "--output-dir", str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith(f"hsa-factory: quickstart: {tmp_path} already holds runs")

    def test_missing_packages_are_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr("hsa_factory.quickstart.run._NEEDED", ("llamafactory_of_nowhere",))
        with pytest.raises(UserError, match="llamafactory_of_nowhere not installed"):
            run_quickstart(tmp_path)
        assert not list(tmp_path.iterdir())


class Run:
    """A run of the quickstart: the first starts Python anew, as for users; the others are children of this process."""

    started = 0
    Popen = subprocess.Popen

    def __new__(cls, command, **options):
        Run.started += 1
        return Run.Popen(command, **options) if Run.started == 1 else super().__new__(cls)

    def __init__(self, command, stdout, stderr, env):
        assert command[:3] == [sys.executable, "-m", "hsa_factory.cli"] and stderr == subprocess.STDOUT
        self.process = start(cli.main, command[3:], output=stdout.name, environment=env)

    def poll(self):
        return self.process.exitcode

    returncode = property(poll)


@pytest.mark.long
@pytest.mark.slow
def test_whole_quickstart(tmp_path, monkeypatch, capsys):
    pytest.importorskip("llamafactory.train.tuner")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setattr(subprocess, "Popen", Run)
    assert run_quickstart(tmp_path / "out", epochs=4) == 0, capsys.readouterr().out
    assert Run.started == len(RECIPES) == 4
    shown = capsys.readouterr().out
    assert all(recipe.title in shown for recipe in RECIPES) and "household_text" in shown
    assert (tmp_path / "out" / "loss.png").stat().st_size > 10_000
