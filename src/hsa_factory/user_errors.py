"""Errors that a user can correct are told in one message; errors of a run that is under way keep their traceback."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


DEBUG = "HSA_FACTORY_DEBUG"
"""Environment variable: if it is set, every error comes with its traceback, and context parallelism says what it moves."""

_KINDS = (ValueError, OSError, ImportError)
_EXTRAS = ("llamafactory", "omegaconf", "rich", "yaml", "matplotlib", "jinja2", "PIL", "pyarrow")
_is_under_way: ContextVar[bool] = ContextVar("is_under_way", default=False)


class UserError(ValueError):
    """A file, an option or an installation is not usable; the message says which, and what to do.

    Args:
        message: What the command line shows, without a traceback.
        exit_code: What the command ends with: 2 if it could not do what was asked for, 1 if it began and failed.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def setting_up() -> Iterator[None]:
    """Turn errors of other packages into a `UserError` while a command reads files, options and checkpoints.

    What they raise before a run begins is about what the user gave: values, files, installed packages. Once the run is
    under way (`run_begins`) the place of an error matters, and it passes as it is.

    Raises:
        UserError: For a `ValueError`, `OSError` or `ImportError` before the run began.
    """
    token = _is_under_way.set(False)
    try:
        yield
    except (UserError, BrokenPipeError):  # a pipe is closed by its reader: `| head` has seen enough
        raise
    except _KINDS as error:
        is_missing_extra = isinstance(error, ModuleNotFoundError) and _top_level(error) in _EXTRAS
        if _is_under_way.get() and not is_missing_extra:
            raise
        raise UserError(explain(error)) from error
    finally:
        _is_under_way.reset(token)


def run_begins() -> None:
    """Say that training, evaluation or an answer begins: the set-up is over."""
    _is_under_way.set(True)


def explain(error: BaseException) -> str:
    """Return an error's message with those of its causes, and how to see its traceback."""
    if isinstance(error, ModuleNotFoundError) and _top_level(error) in _EXTRAS:
        return (
            f"{error.name} is not installed. Install what the commands need: pip install 'hsa-factory[llamafactory]'"
        )

    messages: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        message = str(cause).strip() or type(cause).__name__
        if type(cause).__name__ == "HFValidationError":  # a path that is taken for a name on the Hugging Face Hub
            message = f"there is no such directory. {message}"
        if not any(message in known for known in messages):
            messages.append(message)
        cause = cause.__cause__
    return "\n  because: ".join(messages) + f"\n({DEBUG}=1 shows where.)"


def shows_tracebacks() -> bool:
    """Whether the user asked for the traceback of every error."""
    return bool(os.environ.get(DEBUG))


def _top_level(error: ModuleNotFoundError) -> str:
    return (error.name or "").partition(".")[0]
