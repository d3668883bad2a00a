"""LLaMA Board built once, without a server: its elements, its runner, its chat, and what an event would hand them."""

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import pytest

from hsa_factory.llamafactory import integrate


@dataclass
class Page:
    """The Board of one process."""

    runner: Any
    chatter: Any
    blocks: Any
    state: Any

    @property
    def manager(self) -> Any:
        return self.runner.manager

    def data(self, **changes: Any) -> dict[Any, Any]:
        """What all elements hold: their first values, but for changes by id, with two underscores for the dot."""
        ids = self.manager._id_to_elem
        values = {element: getattr(element, "value", None) for element in ids.values()}
        wanted = {
            "top.lang": "en",
            "top.model_name": "Custom",
            "top.model_path": "no/such/model",
            "top.finetuning_type": "full",
            "train.dataset": ["household"],
            "train.output_dir": "run",
            "train.config_path": "mine.yaml",
            "eval.dataset": ["household"],
            "eval.output_dir": "scores",
        }
        wanted |= {name.replace("__", "."): value for name, value in changes.items()}
        return {**values, **{ids[name]: value for name, value in wanted.items()}}

    def inputs(self, **changes: Any) -> dict[Any, Any]:
        """What the buttons of the Train tab hand over."""
        (event,) = (event for event in self.blocks.fns.values() if event.fn == self.runner.preview_train)
        data = self.data(**changes)
        return {element: data[element] for element in event.inputs}

    def text(self, updates: dict[Any, Any], tab: str = "train") -> str:
        """What an event put into a tab's box of text."""
        return updates[self.manager.get_elem_by_id(f"{tab}.output_box")]


@pytest.fixture(scope="module")  # no longer: one process has one integration
def built(tmp_path_factory):
    from llamafactory.webui import interface

    from hsa_factory.llamafactory.board.install import board

    with contextlib.chdir(tmp_path_factory.mktemp("board")), integrate("saved") as state, board(state):
        blocks = interface.create_ui()
        runner = next(e.fn.__self__ for e in blocks.fns.values() if getattr(e.fn, "__name__", "") == "preview_train")
        load = next(e.fn for e in blocks.fns.values() if getattr(e.fn, "__name__", "") == "unload_model")
        yield Page(runner, load.__self__, blocks, state)


@pytest.fixture
def page(built, tmp_path, monkeypatch):
    """The Board in a directory of its own, with nothing running."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(built.runner, "running", False)
    os.makedirs("data", exist_ok=True)
    return built
