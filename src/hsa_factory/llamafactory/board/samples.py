"""The preview of a data set: the page of `hsa-factory inspect` for the samples that it shows."""

import html
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import yaml
from llamafactory.webui.components.data import PAGE_SIZE

from ...user_errors import UserError
from .blocks import check_args
from .events import inputs_of
from .texts import message


_ONE_BY_ONE = {  # a row for each sample, none of them put aside, and only as many as are looked at
    "val_size": 0,
    "packing": False,
    "neat_packing": False,
    "streaming": False,
    "tokenized_path": None,
    "preprocessing_num_workers": 1,
}


def preview_box_with_types(original: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Add a button and a place for the page to the box that shows samples as they stand in the file."""
    elements = original(*args)
    with elements["preview_samples"].parent.parent:
        button = gr.Button()
        with gr.Row():  # in the column itself the page would be squeezed to nothing
            view = gr.HTML()
    elements["page_index"].change(lambda: "", outputs=[view], queue=False)
    elements["close_btn"].click(lambda: "", outputs=[view], queue=False)
    return {**elements, "samples_btn": button, "samples_view": view}


def tab_with_samples(do_train: bool, original: Callable[..., dict[str, Any]], engine: Any) -> dict[str, Any]:
    """Let the button of a tab's preview read what a run of the tab reads."""
    elements, runner = original(engine), engine.runner
    page_index = elements["page_index"]
    inputs = {*inputs_of(runner.preview_train if do_train else runner.preview_eval), page_index}

    def show(data: dict[Any, Any]) -> Iterator[str]:
        yield from show_samples(runner, data, do_train, int(data[page_index] or 0))

    elements["samples_btn"].click(show, inputs, [elements["samples_view"]], concurrency_limit=None)
    return elements


def show_samples(runner: Any, data: dict[Any, Any], do_train: bool, page: int) -> Iterator[str]:
    """Yield what the preview shows while the page is made, then the page, or why there is none.

    Args:
        runner: The Board's.
        data: What the button has read.
        do_train: Whether it stands in the Train tab.
        page: Number of the preview's page, from 0.
    """
    lang = data[runner.manager.get_elem_by_id("top.lang")] or "en"
    error = runner._initialize(data, do_train, from_preview=True)
    if not error:
        yield html.escape(message("preparing", lang))
        try:
            args = runner._parse_train_args(data) if do_train else runner._parse_eval_args(data)
            yield _frame(_inspect(args, do_train, page, lang))
            return
        except UserError as problem:
            error = message("samples_failed", lang, reason=problem)
    gr.Warning(error)
    yield f"<pre style='white-space: pre-wrap'>{html.escape(error)}</pre>"


def _inspect(args: dict[str, Any], do_train: bool, page: int, lang: str) -> str:
    """Return the page of `hsa-factory inspect`, made in a process of its own: this one may hold another integration.

    Raises:
        UserError: If the data cannot be prepared.
    """
    option = "dataset" if do_train else "eval_dataset"
    first, stop = page * PAGE_SIZE, (page + 1) * PAGE_SIZE
    args = {**args, **_ONE_BY_ONE, option: args[option].split(",")[0], "max_samples": stop}
    args = {name: value for name, value in args.items() if value is not None and value != ""}
    check_args(args, lang)
    with tempfile.TemporaryDirectory() as directory:
        file, output = Path(directory) / "train.yaml", Path(directory) / "page.html"
        file.write_text(yaml.safe_dump(args, allow_unicode=True), encoding="utf-8")
        command = [sys.executable, "-m", "hsa_factory.cli", "inspect", str(file), "--format", "html"]
        command += ["--in-file", "--samples", f"{first}-{stop - 1}", "--split", "train" if do_train else "eval"]
        done = subprocess.run(
            [*command, "--output", str(output)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if done.returncode != 0:
            raise UserError(done.stderr.strip()[-_LONGEST_REASON:])
        return output.read_text(encoding="utf-8")


_LONGEST_REASON = 2000  # characters of a process's last words


def _frame(page: str) -> str:
    """Return a frame that shows a page; what the page runs reaches nothing of the Board."""
    style = "width: 100%; height: 560px; border: 1px solid #ccc"
    return f"<iframe sandbox='allow-scripts' style='{style}' srcdoc=\"{html.escape(page)}\"></iframe>"
