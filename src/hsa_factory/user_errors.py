"""Which errors of a command are the user's to correct, and how they are told: in one message, without a traceback."""

import os
import traceback


DEBUG = "HSA_FACTORY_DEBUG"
"""Environment variable: if it is set, every error comes with its traceback."""

_KINDS = (ValueError, OSError, ImportError)
_AT_WORK = ("_call_impl", "_inner_training_loop")  # torch's modules, and the loop of transformers' Trainer


def is_user_error(error: BaseException) -> bool:
    """Whether an error tells of a file, an option or an installation that is not usable.

    Not one that comes out of a model's forward pass or a training loop: the run was under way, and the place matters.
    """
    if os.environ.get(DEBUG) or not isinstance(error, _KINDS):
        return False
    return all(frame.name not in _AT_WORK for frame in traceback.extract_tb(error.__traceback__))


def explain(error: BaseException) -> str:
    """Return an error's message with those of its causes, and how to see its traceback."""
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
