"""The table of seams, the texts, and that all is as it was afterwards."""

import logging
from functools import partial

import gradio as gr
import pytest

from hsa_factory.llamafactory import integrate
from hsa_factory.llamafactory.board import texts
from hsa_factory.llamafactory.board.events import add_inputs, inputs_of
from hsa_factory.llamafactory.board.fields import INITIAL
from hsa_factory.llamafactory.board.install import board, board_seams


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of gradio


def test_everything_is_taken_back():
    from llamafactory.webui.locales import LOCALES

    with integrate("saved") as state:
        seams, known = board_seams(state), set(LOCALES)
        originals = [vars(seam.owner)[seam.name] for seam in seams]
        with board(state):
            assert all(vars(seam.owner)[seam.name] is not old for seam, old in zip(seams, originals))
            assert set(LOCALES) > known
        assert [vars(seam.owner)[seam.name] for seam in seams] == originals
    assert set(LOCALES) == known


def test_what_we_log_is_in_the_log_that_a_run_makes_for_the_board(tmp_path):
    from llamafactory.extras import logging as theirs

    with integrate("saved"):
        handler = theirs.LoggerHandler(str(tmp_path))
        theirs.add_handler(handler)
        try:
            logging.getLogger("hsa_factory.models.enable").info("HSA is on.")
        finally:
            theirs._get_library_root_logger().removeHandler(handler)
            handler.close()
        logging.getLogger("hsa_factory.models.enable").info("Unheard.")
    log = (tmp_path / "running_log.txt").read_text()
    assert log.count("HSA is on.") == 1 and "Unheard" not in log


@pytest.mark.parametrize("name", ["hsa_mode", "samples_btn"])
def test_a_board_with_elements_of_our_names_is_refused(name, monkeypatch):
    from llamafactory.webui.locales import LOCALES

    monkeypatch.setitem(LOCALES, name, {})
    with integrate("saved") as state, pytest.raises(RuntimeError, match=name), board(state):
        pass
    assert LOCALES[name] == {}


def test_an_event_that_is_not_there_is_named(page):
    with page.blocks, pytest.raises(RuntimeError, match="0 events that call print"):
        add_inputs(print, [])
    with pytest.raises(RuntimeError, match="0 events"):
        inputs_of(page.runner.preview_train)  # no page is being built


def test_every_element_has_its_texts_in_every_language(page):
    from llamafactory.webui.interface import Engine

    change = next(e.fn for e in page.blocks.fns.values() if getattr(e.fn, "__func__", None) is Engine.change_lang)
    ours = {element: name for name, element in page.manager.get_elem_iter() if name in texts._TEXTS}
    assert {*INITIAL, "hsa_tab", "semantic_type", "samples_btn", "samples_view"} == set(ours.values())
    shown = {lang: change(lang) for lang in ("en", "zh", "ru", "ko", "ja")}
    for element, name in ours.items():
        seen = {lang: _text_of(updates[element]) for lang, updates in shown.items()}
        assert seen["en"] and (seen["en"] == seen["zh"]) == (name in ("hsa_mode", "feedback_on"))
        assert seen["ru"] == seen["ko"] == seen["ja"] == seen["en"]


def _text_of(element):
    return element.value if isinstance(element, gr.Button) else element.label


def test_all_tabs_read_the_fields(page):
    fields = {page.manager.get_elem_by_id(f"top.{name}") for name in INITIAL}
    for happening in ("preview_train", "run_train", "save_args", "preview_eval", "run_eval", "load_model"):
        (event,) = (e for e in page.blocks.fns.values() if getattr(e.fn, "__name__", "") == happening)
        assert fields <= set(event.inputs), happening
    for happening in ("load_args", "check_output_dir"):
        (event,) = (e for e in page.blocks.fns.values() if getattr(e.fn, "__name__", "") == happening)
        assert fields <= set(event.outputs), happening


def test_generators_are_known_as_such(page):
    """Gradio looks at a function before it calls it."""
    for happening in ("load_model", "stream", "save_model"):
        found = [e for e in page.blocks.fns.values() if getattr(e.fn, "__name__", "") == happening]
        assert found and all(e.types_generator for e in found), happening


def test_the_chat_demo_has_types_too(page, monkeypatch):
    from llamafactory.webui import chatter, interface

    monkeypatch.setattr(interface, "Engine", partial(_lazy, interface.Engine, chatter.WebChatModel, monkeypatch))
    demo = interface.create_web_demo()
    (append,) = (e for e in demo.fns.values() if getattr(e.fn, "__name__", "") == "append")
    assert append.inputs[-1].choices[0][1] == "rules"


def _lazy(engine, model, monkeypatch, **options):
    """An engine that loads nothing."""
    monkeypatch.setattr(
        "llamafactory.webui.engine.WebChatModel", lambda manager, demo, lazy_init: model(manager, demo, True)
    )
    return engine(**options)
