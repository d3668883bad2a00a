"""`hsa-factory train`: LLaMA-Factory's training with the blocks `hsa` and `feedback` of a training file."""

import subprocess
from collections.abc import Sequence

from ..training_file import is_training_file, read_training_file
from ..user_errors import UserError


USAGE = """\
usage: hsa-factory train FILE.yaml [key=value …]

Train as `llamafactory-cli train` does. The file is a LLaMA-Factory YAML with up to two blocks more:

  hsa: {noise_window: 50}        `hsa: true` for the defaults, `hsa: false` for none; without it, what a checkpoint has
  feedback: {token: <|feedback|>}

Arguments override the file, also inside the blocks: learning_rate=1e-5 hsa.noise_window=20 feedback=false

Several processes, as in LLaMA-Factory:
  FORCE_TORCHRUN=1 NPROC_PER_NODE=2 hsa-factory train FILE.yaml

`llamafactory-cli train --help` lists LLaMA-Factory's own options.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: The training file, then what overrides it.

    Returns:
        The exit code: 0, or 2 without arguments.

    Raises:
        UserError: If the file or an option is not usable, or (exit code 1) a process of several fails.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if not is_training_file(arguments[0]):
        raise UserError(f"train needs a YAML or JSON file first, got {arguments[0]!r}.\n\n{USAGE}")
    read_training_file(
        arguments[0], arguments[1:]
    )  # what is wrong in it is said before the seconds of the next import

    from ..llamafactory.launch import train

    try:
        train(arguments[0], arguments[1:])
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"training failed in a launched process (exit code {error.returncode}); see above.", exit_code=1
        ) from error
    return 0
