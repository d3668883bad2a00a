"""A worker ends with the run that has started it, also if that was killed and could not say so."""

import os
import signal
import threading
import time


EVERY = 1.0
"""Seconds between two looks."""


def end_with(parent: int, every: float = EVERY) -> None:
    """End this process soon after its parent: nobody is left at work when a run was killed.

    What it does can be taken up again: a training from its last checkpoint.

    Args:
        parent: Its process id.
        every: Seconds between two looks.
    """

    def look_again_and_again() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look_again_and_again, daemon=True).start()
