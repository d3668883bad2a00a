"""The command line: `hsa-factory COMMAND …`."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType

from ._version import __version__
from .user_errors import UserError, setting_up, shows_tracebacks
from .visible_text import show_hidden


USAGE = """\
usage: hsa-factory COMMAND …

Hierarchical Semantic Attention and feedback training for LLaMA-Factory.

commands of its own:
  train FILE.yaml [key=value …]   train; the file may have the blocks `hsa` and `feedback`
  label IN --rules R --out OUT    give the messages of a data set types by rules
  pairs IN --out OUT              make preference pairs of the feedback in trajectories, for `stage: dpo`
  inspect FILE.yaml …             show what a model gets to see and is trained on: terminal, JSON, HTML; --check
  quickstart                      train tiny models offline, from nothing to a loss curve
  serve DIR [options of vLLM]     serve a model with HSA on vLLM
  doctor [--device cuda]          whether this machine can run HSA: versions, backends, a self-test, a small timing

passed on to LLaMA-Factory, which runs models with HSA as such:
  api, chat, export, webchat, webui
passed on as they are:
  env, version

`hsa-factory COMMAND --help` says more about a command.
"""

_WITH_A_PARSER = (
    "inspect",
    "label",
    "pairs",
    "doctor",
)  # argparse begins their messages with the command's name, and so do we
SECONDS_OF_THE_FIRST = 10.0
_PASSED_ON = ("api", "chat", "eval", "webchat", "webui", "env", "version")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments; None: those of the process.

    Returns:
        The exit code: 0 for success, 1 for a run that failed, 2 for a command, file or option that is not usable, 130
        if stopped.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else "--help"
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_traceback
    try:
        with setting_up():
            return _find(command)(arguments)
    except UserError as error:
        if shows_tracebacks():
            raise
        _let_the_first_speak()
        return _fail(command, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(command, f"{command} was stopped.", 130)
    except EOFError:
        if command != "chat":
            raise
        print()  # the terminal was closed, or Ctrl-D
        return 0


def _find(command: str) -> Callable[[Sequence[str]], int]:
    """Return a command's function; only what it needs is imported."""
    if command in ("-h", "--help", "help"):
        return lambda _: _say(USAGE)
    if command in ("-V", "--version"):
        return lambda _: _say(f"hsa-factory {__version__}")
    if command == "train":
        from .commands import train

        return train.main
    if command == "inspect":
        from .commands import inspect

        return inspect.main
    if command == "label":
        from .commands import label

        return label.main
    if command == "pairs":
        from .commands import pairs

        return pairs.main
    if command == "doctor":
        from .commands import doctor

        return doctor.main
    if command == "export":
        from .commands import export

        return export.main
    if command == "serve":
        from .commands import serve

        return serve.main
    if command == "quickstart":
        from .quickstart import run

        return run.main
    if command in _PASSED_ON:
        from .commands import pass_on

        return lambda arguments: pass_on.main(command, arguments)
    raise UserError(f"unknown command {command!r}.\n\n{USAGE}")


def _let_the_first_speak() -> None:
    """Wait a moment in the other processes of a launch: most errors are those of all, and the launcher stops them at the first's end."""
    if os.environ.get("LOCAL_RANK", "0") not in ("0", "-1"):  # -1: some launchers' word for no launch
        time.sleep(SECONDS_OF_THE_FIRST)


def _say(text: str) -> int:
    print(text)
    return 0


def _fail(command: str, message: str, exit_code: int) -> int:
    program = f"hsa-factory {command}" if command in _WITH_A_PARSER else "hsa-factory"
    print(f"{program}: {show_hidden(message)}", file=sys.stderr)
    return exit_code


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback whose messages may quote data."""
    sys.stderr.write(show_hidden("".join(traceback.format_exception(kind, error, trace))))


if __name__ == "__main__":
    sys.exit(main())
