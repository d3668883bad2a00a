"""Children in which everything is imported already (a new Python takes ten seconds for that), and which cannot hang.

They are not forks of this process, which has threads: a fork keeps the locks that they hold, and waits for them for
ever. A server that has imported everything and has run nothing forks them.
"""

import logging
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import torch


# Importing may ask for the number of GPUs, and after that CUDA cannot be used in a fork; macOS allows no fork: there a
# child starts anew, however long that takes.
METHOD = "forkserver" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"
SECONDS = 600  # many times what the longest child takes

context = multiprocessing.get_context(METHOD)
if METHOD == "forkserver":  # what is not installed is passed over
    names = ("pytest", "hsa_factory.tiny", "hsa_factory.cli", "hsa_factory.llamafactory", "llamafactory.train.tuner")
    context.set_forkserver_preload([*names, "llamafactory.api.app"])


def start(target, *arguments, output=None, environment=None):
    """Run a function in a child; the whole number that it returns is the exit code.

    Args:
        target: A function of a module, not one within a function.
        *arguments: Handed to it; they are pickled.
        output: Path of a file for what it writes; None: where this process writes.
        environment: Variables that are set in the child only.

    Returns:
        The started `multiprocessing.Process`; `exitcode` is minus the signal's number if one ended it.
    """
    variables = {**os.environ, **(environment or {})}
    process = context.Process(target=_run, args=(target, arguments, output, variables, os.getcwd()))
    process.start()
    return process


def finish(*processes, seconds=SECONDS):
    """Wait for children and return their exit codes; after `seconds` each they are killed, and the test fails."""
    for process in processes:
        process.join(seconds)
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
        process.join()
    if hung:
        pytest.fail(f"{len(hung)} of {len(processes)} children did not end in {seconds} s and were killed")
    return [process.exitcode for process in processes]


def _run(target, arguments, output, variables, directory):
    if METHOD == "forkserver":
        names = [(thread / "comm").read_text().strip() for thread in Path(f"/proc/{os.getppid()}/task").iterdir()]
        names = [name for name in names if name != "jemalloc_bg_thd"]  # pyarrow's memory, which is ready for forks
        assert len(names) == 1, f"the server that forks has threads, started by what was imported: {names}"
    os.environ.clear()
    os.environ |= variables
    os.chdir(directory)
    if output is not None:
        sys.stdout = sys.stderr = open(output, "w", encoding="utf-8", buffering=1)
        for logger in (logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))):
            for handler in logger.handlers:
                if type(handler) is logging.StreamHandler:
                    handler.setStream(sys.stdout)
    sys.exit(target(*arguments))
