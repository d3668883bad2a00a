"""The report as a file."""

import json
import subprocess
import sys

from hsa_factory.llamafactory.data import report as ours
from hsa_factory.llamafactory.data.report import REPORT_NAME, DataReport


WRITE_OFTEN = """
import sys
from hsa_factory.whole_files import write_whole
for _ in range(200):
    write_whole(sys.argv[1], '"' + sys.argv[2] * 5000 + '"')
"""


def test_runs_that_save_at_once_leave_a_whole_report(tmp_path, monkeypatch):
    """In processes of their own: a forked one would inherit locks that other threads hold."""
    written = []
    monkeypatch.setattr(ours, "write_whole", lambda path, text: written.append((path, text)))
    DataReport().save(tmp_path, {})
    ((path, text),) = written
    assert path == tmp_path / REPORT_NAME and "datasets" in json.loads(text)

    runs = [subprocess.Popen([sys.executable, "-c", WRITE_OFTEN, str(path), name]) for name in "ab"]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    assert json.loads(path.read_text("utf-8")) in ("a" * 5000, "b" * 5000)
    assert [left.name for left in tmp_path.iterdir()] == [REPORT_NAME]
