"""Children of this process, in which everything is imported already: a new Python takes ten seconds for that."""

import logging
import multiprocessing
import os
import sys

import torch


# CUDA cannot be used in a fork, and macOS allows none: there a child starts anew, however long that takes.
METHOD = "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"


def start(target, *arguments, output=None, environment=None):
    """Run a function in a child; the whole number that it returns is the exit code.

    Args:
        target: A function of a module, not one within a function.
        *arguments: Handed to it.
        output: Path of a file for what it writes; None: where this process writes.
        environment: Variables that are set in the child only.

    Returns:
        The started `multiprocessing.Process`; `exitcode` is minus the signal's number if one ended it.
    """
    process = multiprocessing.get_context(METHOD).Process(target=_run, args=(target, arguments, output, environment))
    process.start()
    return process


def _run(target, arguments, output, environment):
    os.environ |= environment or {}
    if output is not None:
        sys.stdout = sys.stderr = open(output, "w", encoding="utf-8", buffering=1)
        for logger in (logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))):
            for handler in logger.handlers:
                if type(handler) is logging.StreamHandler:
                    handler.setStream(sys.stdout)
    sys.exit(target(*arguments))
