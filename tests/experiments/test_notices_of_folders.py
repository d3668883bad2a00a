"""What is said of a folder in which a run goes on: broken parts, other settings, other versions."""

import json
from dataclasses import replace

import pytest
from experiments.__main__ import main
from experiments.forms import settings_of
from experiments.notices import notices, settings_file
from experiments.plan import Plan
from experiments.playing import read_games
from experiments.reading import read_json, read_json_lines
from experiments.stages import installed_versions

from hsa_factory.user_errors import UserError


@pytest.fixture
def plan():
    return Plan(settings_of("quick", "cooking"))


def finish(plan, out, name, **changed):
    stage = plan.named(name)
    stage.folder(out).mkdir(parents=True)
    record = {"result": {}, "versions": installed_versions(), **changed}
    (stage.folder(out) / "stage.json").write_text(json.dumps(record))
    return stage


def test_of_a_new_folder_nothing_is_said(plan, tmp_path):
    assert list(notices(plan, tmp_path)) == []


def test_of_a_folder_that_goes_on_as_it_was_begun_nothing_is_said(plan, tmp_path):
    settings_file(plan, tmp_path).write_text(json.dumps(plan.settings.to_dict()))
    finish(plan, tmp_path, "vocabulary")
    assert list(notices(plan, tmp_path)) == []


def test_other_settings_are_named(plan, tmp_path):
    former = {**replace(plan.settings, gold_games=40, test_games=3).to_dict(), "of former times": 1}
    del former["teacher"]  # as of a version that did not have it: the usual one
    settings_file(plan, tmp_path).write_text(json.dumps(former))
    (said,) = notices(plan, tmp_path)
    assert "(gold_games, of former times, test_games)" in said and str(tmp_path) in said


def test_other_versions_are_named_with_the_number_of_parts(plan, tmp_path):
    for name in ("vocabulary", "gold"):
        finish(plan, tmp_path, name, versions={**installed_versions(), "torch": "1.0.0"})
    (said,) = notices(plan, tmp_path)
    assert said.startswith(
        f"2 of the finished parts were made with torch 1.0.0, here is {installed_versions()['torch']}"
    )


def test_a_part_that_is_broken_is_named_before_a_run_or_a_report(plan, tmp_path, capsys):
    (finish(plan, tmp_path, "gold").folder(tmp_path) / "stage.json").write_text('{"res')
    assert main(["--quick", "--out", str(tmp_path), "--report"]) == 2
    error = capsys.readouterr().err
    assert "experiments: gold: " in error and "stage.json is not whole" in error and "is done anew" in error


@pytest.mark.parametrize("content", [None, "", '{"a": 1}\n{"b"', '{"a": "\udcff"'])
def test_what_a_finished_part_has_lost_is_named_with_what_to_do(tmp_path, content):
    file = tmp_path / "part" / "games.jsonl"
    file.parent.mkdir()
    if content is not None:
        file.write_bytes(content.encode("utf-8", "surrogateescape"))
    for read in (read_json, read_json_lines, lambda file: read_games(file.parent)):
        with pytest.raises(UserError, match=rf"games.jsonl (is not whole|is missing).*remove {file.parent}"):
            read(file)
