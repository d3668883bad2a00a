"""Models that the Board loads and exports itself: with what the fields ask for, and with messages that have types."""

import inspect
import json
import shutil

import gradio as gr
import pytest

from hsa_factory import HSAConfig
from hsa_factory.config import CONFIG_NAME
from hsa_factory.llamafactory.board import chat
from hsa_factory.llamafactory.board.fields import INITIAL
from hsa_factory.models.enable import get_state


pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:gradio"),  # what it would show in a browser
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of gradio
]

HSA = HSAConfig(noise_window=4, default_type="NOISE")
ON = {"top__hsa_mode": "on", "top__hsa_noise_window": "7", "top__hsa_default_type": "NOISE"}


@pytest.fixture
def chatter(page):
    yield page.chatter
    page.chatter.engine = None


def load(page, model, **changes):
    changes = {"top__model_path": str(model), "top__template": "qwen3_nothink", "infer__extra_args": "{}", **changes}
    return list(page.chatter.load_model(page.data(**changes)))


def say(chatter, text, kind, chatbot=(), messages=(), system=""):
    chatbot, messages, query = chatter.append(list(chatbot), list(messages), "user", text, True, kind)
    assert query == ""
    seed = [-1] if "seed" in inspect.signature(chatter.stream).parameters else []  # since LLaMA-Factory 0.9.6
    media, numbers, ticks = [None] * 3, [4, 0.7, 0.9, *seed], [True] * 3
    answer = chatter.stream(chatbot, messages, "en", system, "", *media, *numbers, *ticks)
    *_, last = answer
    return last


def test_a_model_is_loaded_with_the_rules_of_the_fields(page, chatter, lf):
    assert load(page, lf.model_dir(), **ON)[-1] == "Model loaded, now you can chat with your model!"
    assert get_state(chatter.engine.model).config == HSAConfig(noise_window=7, default_type="NOISE")
    assert page.state.hsa == "saved"  # the next model does not inherit them


def test_as_saved_and_off(page, chatter, lf, tmp_path):
    saved = lf.save_checkpoint(tmp_path / "saved", HSA)
    load(page, saved)
    assert get_state(chatter.engine.model).config == HSA
    chatter.engine = None
    load(page, saved, top__hsa_mode="off")
    assert get_state(chatter.engine.model) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"top__hsa_noise_window": "abc"}, "NOISE window: 'abc'"),
        ({"top__hsa_noise_window": "abc", "top__lang": "zh"}, "NOISE 窗口：'abc' 无效"),
        ({"top__hsa_noise_window": "9"}, "noise_window: 4 there, 9 here"),
        ({"infer__infer_backend": "vllm"}, "infer_backend: vllm"),
        ({"top__model_path": "no/such/model"}, "no/such/model"),
    ],
)
def test_why_a_model_is_not_loaded_is_said(page, chatter, lf, tmp_path, changes, said):
    saved = lf.save_checkpoint(tmp_path / "saved", HSA)
    mode = {"top__hsa_mode": "on"} if "top__hsa_noise_window" in changes else {"top__hsa_mode": "saved"}
    assert said in load(page, saved, **mode, **changes)[-1]
    assert not chatter.loaded and page.state.hsa == "saved"


def test_messages_have_the_type_chosen_or_that_of_the_rules(page, chatter, lf, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules:\n- {name: key, type: LANDMARK, contains: fridge}\n")
    load(page, lf.model_dir(), **ON, top__hsa_rules=str(rules), top__hsa_generated_type="LANDMARK")
    chatbot, messages = say(chatter, "Go.", "rules", system="Be brief.")
    assert [message.get("semantic_type") for message in messages] == [None, None]
    chatbot, messages = say(chatter, "The fridge.", "rules", chatbot, messages)
    chatbot, messages = say(chatter, "The <table>.", "NOISE", chatbot, messages)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 3
    assert messages[4] == {"role": "user", "content": "The <table>.", "semantic_type": "NOISE"}
    shown = [message["content"].rpartition("<sub>")[2] for message in chatbot]
    assert shown == [f"{kind}</sub>" for kind in ("GLOBAL", "LANDMARK", "LANDMARK", "LANDMARK", "NOISE", "LANDMARK")]
    assert chatbot[4]["content"].startswith("The &lt;table&gt;.")


def test_a_type_without_hsa_is_not_passed_over(page, chatter, lf):
    load(page, lf.model_dir())
    with pytest.warns(UserWarning, match="no HSA: the type NOISE"):
        chatbot, messages = say(chatter, "Go.", "NOISE")
    assert "<sub>" not in "".join(message["content"] for message in chatbot)


def test_a_refusal_is_shown(page, chatter, lf):
    load(page, lf.model_dir(), **ON)
    with pytest.raises(gr.Error, match="message 0"):
        say(chatter, "Go.", "LOUD")


def test_a_later_llama_factory_hands_over_a_seed():
    seen = []

    def original(chatter, chatbot, messages, lang, system, *rest):
        seen.extend(rest)
        yield chatbot, messages

    class Chatter:
        engine = None

    rest = ["", None, None, None, 4, 0.7, 0.9, -1, True, True, True]
    list(
        chat.stream_typed(
            original, Chatter(), [{"content": "Go."}], [{"role": "user", "content": "Go."}], "en", "", *rest
        )
    )
    assert seen == rest


def export(page, model, directory, lang="en", **changes):
    import llamafactory.webui.components.export as tab

    (event,) = (event for event in page.blocks.fns.values() if event.fn is tab.save_model)
    ids = {page.manager.get_id_by_elem(element): element for element in event.inputs}
    assert [f"top.{name}" for name in INITIAL] == list(ids)[-len(INITIAL) :]
    changes = {
        "top__lang": lang,
        "top__model_path": str(model),
        "top__checkpoint_path": str(model),
        "top__template": "qwen3_nothink",
        "export__export_dir": str(directory),
        "export__extra_args": "{}",
        **changes,
    }
    data = page.data(**changes)
    return list(tab.save_model(*(data[element] for element in event.inputs)))[-1]


def test_a_model_is_exported_with_the_rules_of_the_fields(page, lf, tmp_path):
    model = shutil.copytree(lf.model_dir(), tmp_path / "model")
    assert export(page, model, tmp_path / "out", **ON) == "Model exported."
    assert json.loads((tmp_path / "out" / CONFIG_NAME).read_text())["noise_window"] == 7
    assert export(page, model, tmp_path / "plain") == "Model exported."
    assert not (tmp_path / "plain" / CONFIG_NAME).exists()


def test_why_a_model_is_not_exported_is_said(page, lf, tmp_path):
    said = export(page, lf.model_dir(), tmp_path / "out", lang="zh", **{**ON, "top__hsa_noise_window": "abc"})
    assert "'abc' 无效" in said
    model = lf.save_checkpoint(tmp_path / "saved", HSA)
    assert "noise_window: 4 there" in export(page, model, tmp_path / "out", **ON)
    assert not (tmp_path / "out").exists()
