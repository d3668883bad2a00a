"""The suite's last word on what it left out."""

from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def summary(request):
    """Return what this suite's conftest writes at the end, given the reports of what was skipped."""
    path = str(Path(__file__).with_name("conftest.py"))
    (conftest,) = (
        plugin for plugin in request.config.pluginmanager.get_plugins() if getattr(plugin, "__file__", None) == path
    )

    def write(*skips):
        lines = []
        stats = {"skipped": [SimpleNamespace(longrepr=skip) for skip in skips]} if skips else {}
        conftest.pytest_terminal_summary(SimpleNamespace(stats=stats, write_line=lines.append))
        return lines

    return write


def test_skips_are_summed_up_in_one_line(summary):
    kernels = [("test_flex.py", line, "Skipped: needs CUDA") for line in range(12)]
    data = [["test_data.py", 3, "Skipped: ../shared is absent"], ("test_more.py", 4, "Skipped: ../shared is absent")]
    assert summary(*data, *kernels, "a reason of a plugin") == [
        "15 skipped: needs CUDA (12), ../shared is absent (2), a reason of a plugin (1)"
    ]


def test_nothing_is_said_where_nothing_was_skipped(summary):
    assert summary() == []
