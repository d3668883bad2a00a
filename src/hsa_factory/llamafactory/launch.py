"""Running LLaMA-Factory's commands with the integration, in this process or through torchrun."""

import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from llamafactory import launcher
from llamafactory.extras.misc import get_device_count, use_ray
from llamafactory.extras.packages import is_fastapi_available, is_gradio_available

from ..config import FeedbackConfig, HSAConfig
from ..loss_weights import LossWeightsConfig
from ..training_file import SAVED, TrainingFile, is_training_file, read_training_file
from ..user_errors import UserError
from .arguments import with_text
from .data.tokenized_path import check_arrow_files
from .integration import integrate
from .model.checkpoint import has_saved_rules, starting_points
from .options import check_trainer
from .plain_run import PlainRunCallback
from .processes import starts_processes
from .saved_files import check_models, with_whole_checkpoint
from .seams import installed
from .serving_export import EXPORT_FOR, exported_for
from .train.context_parallel import check_processes
from .under_way import BeginningCallback, first_answer_begins


if is_fastapi_available():
    from .chat.api import api_seams


_MODEL_COMMANDS = ("api", "chat", "export", "webchat", "webui")
_ADDRESSES = {"api": "API_HOST", "webchat": "GRADIO_SERVER_NAME", "webui": "GRADIO_SERVER_NAME"}
_BOARDS = ("webchat", "webui")
_LOCAL = "127.0.0.1"  # LLaMA-Factory's own default lets every machine of the network in
_WORKER = str(Path(__file__).with_name("worker.py"))


def train(path: str, overrides: Sequence[str]) -> None:
    """Train as `llamafactory-cli train FILE key=value …` does, with the file's `hsa`, `feedback` and `loss_weights`.

    Without an `hsa` block a run takes the rules saved beside the checkpoint, adapter or model it starts from, if any.

    Raises:
        ValueError: If the file or an option is not allowed.
        subprocess.CalledProcessError: If a process launched by torchrun fails.
    """
    training_file = with_text(read_training_file(path, overrides))
    if starts_processes():
        _rules_to_train_with(training_file)  # what is wrong is said once, not by every process
        check_processes(training_file.context_parallel, _processes())
        # LLaMA-Factory calls `torchrun` by name; it lies beside this Python even if no environment is activated.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        with _patched(launcher, "__file__", _WORKER), _argv("train", path, *overrides):
            launcher.launch()  # torchrun runs the worker below instead of LLaMA-Factory's own
    else:
        run(training_file)


def _processes() -> int:
    """Return how many processes LLaMA-Factory's launcher starts, those of other machines included."""
    per_machine = os.environ.get("NPROC_PER_NODE", str(get_device_count()))
    return int(os.environ.get("NNODES", "1")) * int(per_machine)


def run(training_file: TrainingFile) -> None:
    """Train in this process.

    Raises:
        ValueError: If the file or an option is not allowed, or a file that the run reads is broken.
    """
    from llamafactory.train.tuner import run_exp

    training_file = replace(training_file, args=with_whole_checkpoint(training_file.args))
    check_models(starting_points(training_file.args))
    check_arrow_files(training_file.args.get("tokenized_path"))
    hsa = _rules_to_train_with(training_file)
    callbacks = [BeginningCallback()] if hsa else [BeginningCallback(), PlainRunCallback()]
    ranks = training_file.context_parallel
    with _integration(hsa, training_file.feedback, training_file.loss_weights, context_parallel=ranks):
        run_exp(dict(training_file.args), callbacks=callbacks)


def pass_on(command: str, arguments: Sequence[str]) -> None:
    """Run any other LLaMA-Factory command; a model with HSA runs with it.

    The rules are those of the file's `hsa` block; without one, those saved beside the model or adapter, if any.
    """
    hsa: HSAConfig | bool | str | None = SAVED if command in _MODEL_COMMANDS else None
    if not arguments or not is_training_file(arguments[0]):
        _launch(command, arguments, hsa, None)
        return

    training_file = with_text(read_training_file(arguments[0], arguments[1:]))
    check_models(starting_points(training_file.args))
    if hsa is not None or training_file.hsa is not None:
        hsa = training_file.asked_for
    args = dict(training_file.args)
    engine = args.pop(EXPORT_FOR, None) if command == "export" else None
    with exported_for(engine, args, hsa), tempfile.TemporaryDirectory() as directory:
        plain = Path(directory) / "arguments.yaml"
        plain.write_text(yaml.safe_dump(args, allow_unicode=True), encoding="utf-8")
        _launch(command, [str(plain)], hsa, training_file.feedback)


def _launch(
    command: str, arguments: Sequence[str], hsa: HSAConfig | bool | str | None, feedback: FeedbackConfig | None
) -> None:
    with (
        _integration(hsa, feedback, command=command) as state,
        first_answer_begins(),
        _board(command, state),
        _argv(command, *arguments),
        _undisturbed(command),
        _local(command),
    ):
        launcher.launch()


def _integration(
    hsa: HSAConfig | bool | str | None,
    feedback: FeedbackConfig | None,
    loss_weights: LossWeightsConfig | None = None,
    command: str = "train",
    context_parallel: int = 1,
) -> Any:
    if hsa or feedback is not None or loss_weights is not None or command in _BOARDS:
        return integrate(hsa, feedback, loss_weights, context_parallel)
    if command == "api" and is_fastapi_available():
        return installed(api_seams())  # a server is as careful without HSA
    return nullcontext()


def _board(command: str, state: Any) -> Any:
    """Return the context in which a command shows LLaMA Board, which needs gradio; of others none.

    Raises:
        UserError: If gradio is not installed.
    """
    if command not in _BOARDS:
        return nullcontext()
    if not is_gradio_available():
        raise UserError(f"{command} needs gradio, which is not installed: pip install gradio")
    from .board.install import board

    return board(state)


def _rules_to_train_with(training_file: TrainingFile) -> HSAConfig | bool | str:
    """Return what a file asks for; False where it does not say and nothing was saved: then it is a plain file.

    Raises:
        ValueError: If it is not plain, and its trainer is not LLaMA-Factory's own.
    """
    args, hsa = training_file.args, training_file.asked_for
    if hsa == SAVED and not has_saved_rules(starting_points(args)):
        hsa = False
    if hsa or training_file.feedback is not None or training_file.loss_weights is not None:
        check_trainer(args)
        if args.get("use_ray") and not use_ray():
            raise ValueError("`use_ray` is none of LLaMA-Factory's options: set the environment variable USE_RAY=1.")
    return hsa


@contextmanager
def _local(command: str) -> Any:
    """Let a server listen on this machine only, unless the environment names an address."""
    variable = _ADDRESSES.get(command)
    if variable is None or os.environ.get(variable):
        yield
        return
    os.environ[variable] = _LOCAL
    try:
        yield
    finally:
        del os.environ[variable]


@contextmanager
def _undisturbed(command: str) -> Any:
    """Keep the line that says which backend was chosen out of the first answer in a terminal."""
    attention = logging.getLogger("hsa_factory.attention")
    former = attention.level
    if command == "chat":
        attention.setLevel(logging.WARNING)
    try:
        yield
    finally:
        attention.setLevel(former)


@contextmanager
def _argv(*arguments: str) -> Any:
    with _patched(sys, "argv", ["llamafactory-cli", *arguments]):
        yield


@contextmanager
def _patched(owner: Any, name: str, value: Any) -> Any:
    former = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, former)
