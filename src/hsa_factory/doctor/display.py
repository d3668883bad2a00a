"""A progress display on standard error for the parts that take a while."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(title: str, steps: int) -> Iterator[Callable[[str], None]]:
    """Show how far a part is: a bar in a terminal where rich is installed, else one line.

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
        print(f"hsa-factory doctor: {title}", file=sys.stderr, flush=True)
        yield lambda _step: None
        return

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"hsa-factory doctor: {title}", file=sys.stderr, flush=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=steps)
        begun = 0

        def advance(step: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=f"{title}: {step}")
            begun += 1

        yield advance
