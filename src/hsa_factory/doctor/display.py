"""A progress display on standard error for the parts that take a while."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


_EVERY_S = 5.0  # between two lines where there is no terminal, as in a log


@contextmanager
def progress(title: str, steps: int) -> Iterator[Callable[[str], None]]:
    """Show how far a part is: a bar in a terminal where rich is installed, else a line every few seconds.

    Args:
        title: What is done.
        steps: How many there are.

    Yields:
        A function to call before each step, with what it is.
    """
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield _lines(title, steps)
        return

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(title, steps)
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(title, total=steps)
        begun = 0

        def advance(step: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=f"{title}: {step}")
            begun += 1

        yield advance


def _lines(title: str, steps: int) -> Callable[[str], None]:
    """Return a function that prints the first step, and then one now and again."""
    begun, printed = 0, float("-inf")

    def advance(step: str) -> None:
        nonlocal begun, printed
        begun += 1
        if time.monotonic() - printed > _EVERY_S:
            printed = time.monotonic()
            print(f"hsa-factory doctor: {title}: {step} ({begun} of {steps})", file=sys.stderr, flush=True)

    return advance
