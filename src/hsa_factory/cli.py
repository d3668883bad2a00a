"""The command line: `hsa-factory COMMAND …`."""

import sys
from collections.abc import Sequence

from . import __version__
from .user_errors import explain, is_user_error


USAGE = """\
usage: hsa-factory COMMAND …

Hierarchical Semantic Attention and feedback training for LLaMA-Factory.

commands of its own:
  train FILE.yaml [key=value …]   train; the file may have the blocks `hsa` and `feedback`
  label IN --rules R --out OUT    give the messages of a data set types by rules
  inspect FILE.yaml …             show what a model gets to see and is trained on: terminal, JSON, HTML; --check
  quickstart                      train tiny models offline, from nothing to a loss curve

passed on to LLaMA-Factory, which runs models with HSA as such:
  api, chat, export, webchat, webui
passed on as they are:
  env, version

`hsa-factory COMMAND --help` says more about a command.
"""
TRAIN_USAGE = """\
usage: hsa-factory train FILE.yaml [key=value …]

Train as `llamafactory-cli train` does. The file is a LLaMA-Factory YAML with up to two blocks more:

  hsa: {noise_window: 50}        `hsa: true` for the defaults
  feedback: {token: <|feedback|>}

Arguments override the file, also inside the blocks: learning_rate=1e-5 hsa.noise_window=20 feedback=false

Several processes, as in LLaMA-Factory:
  FORCE_TORCHRUN=1 NPROC_PER_NODE=2 hsa-factory train FILE.yaml

`llamafactory-cli train --help` lists LLaMA-Factory's own options.
"""

_EXTRAS = ("llamafactory", "omegaconf", "rich", "yaml", "matplotlib", "jinja2", "PIL", "pyarrow")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments; None: those of the process.

    Returns:
        The exit code: 0 for success, 1 for a run that failed, 2 for a command, file or option that is not usable, 130
        if stopped.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else ""
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return _fail(f"{command} was stopped.", 130)
    except EOFError:
        if command != "chat":
            raise
        print()  # the terminal was closed, or Ctrl-D
        return 0
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _EXTRAS:
            return _fail(
                f"{error.name} is not installed. Install what the commands need: pip install "
                "'hsa-factory[llamafactory]'"
            )
        if not is_user_error(error):
            raise
        return _fail(explain(error))


def _run(arguments: list[str]) -> int:
    command = arguments.pop(0) if arguments else "--help"
    if command in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if command in ("-V", "--version"):
        print(f"hsa-factory {__version__}")
        return 0

    if command == "train":
        return _train(arguments)
    if command == "inspect":
        from .commands.inspect import main as inspect_main

        return inspect_main(arguments)
    if command == "label":
        from .commands.label import main as label_main

        return label_main(arguments)
    if command == "quickstart":
        from .quickstart.run import main as quickstart_main

        return quickstart_main(arguments)
    if command in ("api", "chat", "eval", "export", "webchat", "webui", "env", "version"):
        problem = _file_problem(arguments)
        if problem:
            return _fail(problem)

        from .llamafactory.launch import pass_on

        pass_on(command, arguments)
        return 0

    return _fail(f"unknown command {command!r}.\n\n{USAGE}")


def _train(arguments: list[str]) -> int:
    from .training_file import is_training_file

    if not arguments or arguments[0] in ("-h", "--help"):
        print(TRAIN_USAGE)
        return 0 if arguments else 2
    if not is_training_file(arguments[0]):
        return _fail(f"train needs a YAML or JSON file first, got {arguments[0]!r}.\n\n{TRAIN_USAGE}")
    problem = _file_problem(arguments)  # before the seconds that the imports below take
    if problem:
        return _fail(problem)

    import subprocess

    from .llamafactory.launch import train

    try:
        train(arguments[0], arguments[1:])
    except subprocess.CalledProcessError as error:
        return _fail(f"training failed in a launched process (exit code {error.returncode}); see above.", 1)

    return 0


def _file_problem(arguments: list[str]) -> str | None:
    """Return what is wrong with the file that a command's arguments begin with; None if nothing is, or there is none."""
    from .training_file import is_training_file, read_training_file

    try:
        if arguments and is_training_file(arguments[0]):
            read_training_file(arguments[0], arguments[1:])
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


def _fail(message: str, code: int = 2) -> int:
    print(f"hsa-factory: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
