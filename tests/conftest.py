"""What all tests share: one thread each, a tiny tokenizer, and hypothesis without a database or time limits."""

import gc
import os
import shutil
from collections import Counter
from pathlib import Path

import hypothesis
import pytest


# The parallel workers of pytest-xdist share the cores, and so do the processes that tests start. Said before anything
# imports torch, and torch is not imported here: the process that hands out the tests needs none.
os.environ["OMP_NUM_THREADS"] = "1"

hypothesis.settings.register_profile("hsa", deadline=None, database=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("hsa")

TOKENIZER_TEXTS = [
    "The robot opens the fridge and takes the red apple out of it. It navigates to the dining table. ",
    "<think>The table is the place to go.</think><DecisionMaking>navigate to table</DecisionMaking> ",
    "机器人打开冰箱，拿出一个苹果。",
] * 4


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; tests are skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if path is None and not Path(playwright.chromium.executable_path).is_file():
            pytest.skip("no Chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level tokenizer with Qwen's special tokens; texts that it knows become several characters a token."""
    from hsa_factory import tiny

    return tiny.build_tokenizer(TOKENIZER_TEXTS)


def pytest_collection_modifyitems(items):
    """Put the files that take long first, then those with many tests: workers that take file by file end together."""
    number = Counter(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, -number[item.path], item.path))


def pytest_collection_finish():
    """What has been imported stays: without this, every collection of garbage looks through all of it."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """Sum up in one line what was skipped, and why."""
    line = skip_line([report.longrepr for report in terminalreporter.stats.get("skipped", [])])
    if line:
        terminalreporter.write_line(line)


def skip_line(skips):
    """Return ``23 skipped: needs CUDA (12), ../shared is absent (11)``; nothing without skips.

    Args:
        skips: What pytest knows of each: a file, a line and a reason, or any text.
    """
    reasons = [skip[2] if isinstance(skip, (tuple, list)) else str(skip) for skip in skips]
    counts = Counter(reason.removeprefix("Skipped: ") for reason in reasons)
    listed = ", ".join(f"{reason} ({count})" for reason, count in counts.most_common())
    return f"{len(skips)} skipped: {listed}" if skips else ""
