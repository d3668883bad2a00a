"""What the Board previews and starts: checked first, run by our command, with the table of the data above the log."""

import io
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from llamafactory.extras import logging
from llamafactory.extras.constants import TRAINING_ARGS
from llamafactory.webui.common import _clean_cmd
from rich.console import Console

from ...training_file import BLOCKS, split_ranks
from ...user_errors import UserError
from ..data.report import REPORT_NAME, DataReport
from ..model.checkpoint import has_saved_rules, starting_points
from .blocks import check_args, read_blocks, with_blocks
from .elements import option_elements, read_fields
from .fields import INITIAL
from .texts import message


logger = logging.get_logger(__name__)

_TABLE_WIDTH = 116  # characters


def check_first(
    original: Callable[..., str], runner: Any, data: dict[Any, Any], do_train: bool, *args: Any, **kw: Any
) -> str:
    """Return what is wrong with the fields before anything is previewed, saved or started; empty: nothing."""
    error = original(runner, data, do_train, *args, **kw)
    if error:
        return error
    lang = _language(runner.manager, data)
    try:
        parsed = runner._parse_train_args(data) if do_train else runner._parse_eval_args(data)
        check_args(parsed, lang)
    except UserError as problem:
        return str(problem)
    except (ValueError, TypeError) as problem:  # a field of LLaMA-Factory's own holds no number
        return message("arguments", lang, reason=problem)
    return ""


def parse_with_blocks(original: Callable[..., dict[str, Any]], runner: Any, data: dict[Any, Any]) -> dict[str, Any]:
    """Return the arguments of a run, with the blocks that the fields ask for.

    Raises:
        UserError: If a field holds what is not allowed.
    """
    lang = _language(runner.manager, data)
    blocks = read_blocks(read_fields(runner.manager, data), lang)
    return with_blocks(original(runner, data), blocks, lang)


def preview(original: Callable[..., str], args: dict[str, Any]) -> str:
    """Show the file and the command that start the same run from a terminal; LLaMA-Factory's where it is plain."""
    if not _needs_us(args):
        return original(args)
    text = yaml.safe_dump(_clean_cmd(args), allow_unicode=True, sort_keys=False)
    _, ranks = split_ranks(args.get("hsa"))
    torchrun = "FORCE_TORCHRUN=1 " if args.get("deepspeed") or ranks > 1 else ""
    return f"`train.yaml`\n```yaml\n{text}```\n\n```bash\n{torchrun}hsa-factory train train.yaml\n```"


def start(original: Any, command: list[str], **options: Any) -> Any:
    """Start our command in the place of LLaMA-Factory's, with the same file."""
    if command[:2] == ["llamafactory-cli", "train"]:
        command = [sys.executable, "-m", "hsa_factory.cli", *command[1:]]
        logger.info_rank0(f"Starting: {shlex.join(command)}")
    return original(command, **options)


def saved_config(original: Callable[..., dict[str, Any]], runner: Any, data: dict[Any, Any]) -> dict[str, Any]:
    """Leave out our fields that nobody touched: without HSA and Feedback a saved configuration is LLaMA-Factory's."""
    untouched = {runner.manager.get_id_by_elem(element): INITIAL[name] for name, element in _fields(runner)}
    config = original(runner, data)
    return {name: value for name, value in config.items() if name not in untouched or value != untouched[name]}


def loaded_config(original: Callable[..., dict[Any, Any]], runner: Any, *args: Any) -> dict[Any, Any]:
    """Restore a saved configuration; fields that it does not name are as in a fresh Board, not as they were left."""
    loaded = original(runner, *args)
    if len(loaded) > 1:  # besides the message
        loaded = {**{element: INITIAL[name] for name, element in _fields(runner)}, **loaded}
    return loaded


def with_table(original: Callable[..., tuple], lang: str, output_path: Any, *args: Any, **kwargs: Any) -> tuple:
    """Put the table of the prepared data above a run's log, from before the first step on."""
    log, *rest = original(lang, output_path, *args, **kwargs)
    return (_table_of(Path(output_path)) + log, *rest)


def _fields(runner: Any) -> Iterator[tuple[str, Any]]:
    yield from option_elements(runner.manager).items()


def _language(manager: Any, data: dict[Any, Any]) -> str:
    return data[manager.get_elem_by_id("top.lang")] or "en"


def _needs_us(args: dict[str, Any]) -> bool:
    return any(name in args for name in BLOCKS) or has_saved_rules(starting_points(args))


def _table_of(output_path: Path) -> str:
    report, arguments = output_path / REPORT_NAME, output_path / TRAINING_ARGS
    try:
        if report.stat().st_mtime < arguments.stat().st_mtime:  # of a former run with the same directory
            return ""
        text = io.StringIO()
        DataReport.from_dict(DataReport.load_values(report)).print(Console(file=text, width=_TABLE_WIDTH))
    except (OSError, ValueError):  # not there yet
        return ""
    return f"```\n{text.getvalue()}```\n"
