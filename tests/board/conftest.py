"""`hsa-factory webui` as a process of its own, in a directory with tiny models and data, and a browser in front of it."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest


STARTS_WITHIN = 240  # seconds


@pytest.fixture(scope="session")
def kitchen(tmp_path_factory):
    """A directory with the quickstart's data and a tiny Qwen3, untrained."""
    from hsa_factory.quickstart.recipes import DATA_DIR
    from hsa_factory.tiny import save_tiny

    directory = tmp_path_factory.mktemp("kitchen")
    shutil.copytree(DATA_DIR, directory / "data")
    texts = (directory / "data" / "corpus.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    save_tiny("qwen3", directory / "model", texts)
    return directory


@pytest.fixture(scope="module")
def board(browser, kitchen):  # without a browser nothing is started
    """Return the address of a Board that runs in that directory."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **settings, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "BROWSER": "true"}
    command = [sys.executable, "-m", "hsa_factory.cli", "webui"]
    with open(kitchen / "board.log", "w") as log:
        process = subprocess.Popen(command, cwd=kitchen, env=environment, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/", process, kitchen / "board.log")
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


def _wait_for(address, process, log):
    end = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"The Board did not start: {log.read_text()[-3000:]}")


@pytest.fixture
def user(browser, board):
    """Somebody who has opened the Board; what breaks in the page fails the test."""
    from board_user import User

    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(15_000)
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(board)
    page.get_by_role("tab", name="Chat").wait_for()
    page.wait_for_timeout(1500)  # it asks for what it shows
    yield User(page)
    context.close()
    assert problems == []
