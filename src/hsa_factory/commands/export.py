"""`hsa-factory export`: LLaMA-Factory's export with HSA, and a checkpoint for vLLM."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..serving_checkpoint import ENGINES, check_engine, write_serving_checkpoint
from ..user_errors import UserError


USAGE = """\
usage: hsa-factory export FILE.yaml [key=value …]
       hsa-factory export CHECKPOINT --export_for vllm --export_dir DIR

Export a model with HSA. The first form is LLaMA-Factory's export, which merges adapters too; the file may have the block
`hsa`, and one key more:

  export_for: vllm    write a checkpoint that vLLM serves with HSA, and refuses where our plugin is not installed

The second form writes such a checkpoint from a model that was saved with HSA: a copy, without LLaMA-Factory.

`llamafactory-cli export --help` lists LLaMA-Factory's own options.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: A file and what overrides it, a checkpoint's directory and options, or LLaMA-Factory's options.

    Returns:
        The exit code 0.

    Raises:
        UserError: If a file, a directory or an option is not usable.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if not arguments or not Path(arguments[0]).is_dir():
        if any(argument.partition("=")[0] == "--export_for" for argument in arguments):
            raise UserError(f"--export_for needs the directory of a model first; in a file it is a key.\n\n{USAGE}")
        from . import pass_on  # here: where vLLM is installed, what reads training files need not be

        return pass_on.main("export", arguments)
    options = _parser().parse_args(arguments)
    check_engine(options.export_for)
    name = write_serving_checkpoint(options.checkpoint, options.export_dir)
    print(f"{options.export_dir} is a checkpoint for vLLM, of the architecture {name}.")
    print(f"Serve it: hsa-factory serve {options.export_dir}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hsa-factory export", usage=USAGE.removeprefix("usage: "), add_help=False)
    parser.add_argument("checkpoint")
    parser.add_argument("--export_for", required=True, metavar="|".join(ENGINES))
    parser.add_argument("--export_dir", required=True, metavar="DIR")
    return parser
