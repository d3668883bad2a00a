"""The report as a file."""

import json
import multiprocessing

from hsa_factory.llamafactory.data.report import REPORT_NAME, DataReport


def save_often(directory, note):
    report = DataReport()
    report.note = note
    for _ in range(200):
        report.save(directory, {})


def test_runs_that_save_at_once_leave_a_whole_report(tmp_path):
    fork = multiprocessing.get_context("fork")
    runs = [fork.Process(target=save_often, args=(tmp_path, name * 5000)) for name in "ab"]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    assert json.loads((tmp_path / REPORT_NAME).read_text("utf-8"))["note"] in ("a" * 5000, "b" * 5000)
    assert [path.name for path in tmp_path.iterdir()] == [REPORT_NAME]
