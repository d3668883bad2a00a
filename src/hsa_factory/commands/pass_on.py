"""`hsa-factory chat`, `api`, `export` and others: LLaMA-Factory's own commands, in which a model with HSA runs as such."""

from collections.abc import Sequence

from ..training_file import is_training_file, read_training_file
from ..user_errors import UserError


def main(command: str, arguments: Sequence[str]) -> int:
    """Run a command of LLaMA-Factory.

    Args:
        command: Its name.
        arguments: Its arguments: a file and what overrides it, or options.

    Returns:
        The exit code 0.

    Raises:
        UserError: If the file is not usable, or LLaMA-Factory has no such command any more.
    """
    if command == "eval":
        raise UserError(
            "LLaMA-Factory has no `eval` any more. Evaluate with `hsa-factory train`: `do_eval: true` for the loss of an "
            "eval_dataset, `do_predict: true` and `predict_with_generate: true` for answers."
        )
    if arguments and is_training_file(arguments[0]):
        read_training_file(arguments[0], arguments[1:])  # said before the seconds that the next import takes

    from ..llamafactory.launch import pass_on

    pass_on(command, arguments)
    return 0
