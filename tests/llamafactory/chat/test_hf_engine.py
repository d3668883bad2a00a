"""chat, api and webchat in this process: which types prompts have, that answers are HSA's, that streams end."""

import asyncio
import importlib.util
import inspect
import threading
import time
from types import SimpleNamespace

import llamafactory.chat.hf_engine as hf_engine
import pytest
import torch
from chatting import HSA, NEW, G, L, N, chat_model, greedy, prompt_of, talk
from llamafactory.chat import ChatModel

from hsa_factory import HSAConfig
from hsa_factory.llamafactory import integrate
from hsa_factory.llamafactory.chat import hf_engine as ours
from hsa_factory.llamafactory.chat.hf_engine import type_messages
from hsa_factory.models.enable import get_state
from hsa_factory.models.generation.generate import generation_lock
from hsa_factory.typed.text import TypedText
from hsa_factory.vllm.server.chat_prompt import ChatTyper
from hsa_factory.vllm.types import types_of as prompt_types


@pytest.fixture(scope="module")
def loaded(lf):
    with chat_model(lf.model_dir("qwen3")) as model:
        return model


@pytest.fixture
def served(loaded):
    """A chat model with HSA; one for all tests of this file."""
    with integrate(HSA):
        yield loaded


def types_of_marks(lf, model, gen_kwargs):
    """Return the set of types that each message's tokens have, by the number of its mark."""
    marks = lf.mark_ids(model.engine.tokenizer)
    found = {}
    pairs = zip(gen_kwargs["inputs"][0].tolist(), gen_kwargs["semantic_ids"][0].tolist())
    for token, kind in pairs:
        if token in marks:
            found.setdefault(marks[token], set()).add(kind)
    return found


# -- types -----------------------------------------------------------------------------------------------------


def test_roles_decide_by_default(lf, served):
    messages = talk(lf, "user", "assistant", "observation", "assistant", "user")
    gen_kwargs = prompt_of(served, messages, lf.MARKS[9])
    assert types_of_marks(lf, served, gen_kwargs) == {9: {G}, 0: {G}, 1: {N}, 2: {N}, 3: {N}, 4: {N}}
    assert gen_kwargs["semantic_ids"].shape == gen_kwargs["inputs"].shape
    assert gen_kwargs["semantic_ids"].dtype == torch.long


def test_given_types_win(lf, served):
    messages = talk(lf, "user", "assistant", "user", m0="noise", m1=1, m2="GLOBAL_CONDITION")
    found = types_of_marks(lf, served, prompt_of(served, messages, TypedText(lf.MARKS[9], L)))
    assert found == {9: {L}, 0: {N}, 1: {L}, 2: {G}}


def test_rules_and_generated_type(lf):
    rules = [{"role": "user", "turn": 1, "type": "LANDMARK"}, {"tag": "think", "type": "NOISE"}]
    config = HSAConfig(default_type="LANDMARK", generated_type="GLOBAL", rules=rules)
    with chat_model(lf.model_dir("qwen3"), config) as model:
        messages = talk(lf, "user", "assistant", "user", "assistant", "observation")
        messages[1]["content"] += f"<think>{lf.MARKS[8]}</think>"
        assert types_of_marks(lf, model, prompt_of(model, messages)) == {
            0: {G},
            1: {G},
            8: {N},
            2: {L},
            3: {G},
            4: {L},
        }


@pytest.mark.parametrize("template", ["qwen3", "qwen3_nothink", "llama3", "gemma", "chatml"])
@pytest.mark.parametrize("thinking", [True, False])
def test_prompts_are_those_of_plain_llamafactory(lf, template, thinking):
    more = {"template": template, "enable_thinking": thinking}
    tools = '[{"name": "go", "description": "Go.", "parameters": {"type": "object", "properties": {}}}]'
    talks = [talk(lf, "user"), talk(lf, "user", "assistant", "user"), talk(lf, "user", "function", "observation")]
    talks[1][1]["content"] = "<think>a thought</think>" + lf.MARKS[1]
    talks[2][1]["content"] = '{"name": "go", "arguments": {}}'
    args = {"model_name_or_path": str(lf.model_dir("qwen3")), "max_new_tokens": NEW}
    plain = ChatModel({**args, **more})
    with chat_model(lf.model_dir("qwen3"), **more) as model:
        for messages in talks:
            for system, given in ((None, None), ("Be brief.", None), (None, tools), ("Be brief.", tools)):
                ours = prompt_of(model, messages, system, given)
                theirs = prompt_of(plain, messages, system, given)
                assert ours["inputs"].tolist() == theirs["inputs"].tolist()
                assert "semantic_ids" not in theirs
                assert set(ours["semantic_ids"].flatten().tolist()) <= {G, N}


@pytest.mark.parametrize(
    "config",
    [
        HSA,
        HSAConfig(
            default_type="NOISE", generated_type="LANDMARK", rules=[{"role": "user", "turn": 1, "type": "GLOBAL"}]
        ),
        HSAConfig(noise_turns=1, default_type="LANDMARK", rules=[{"tag": "think", "type": "NOISE"}]),
    ],
)
def test_a_vllm_server_types_prompts_alike(lf, config):
    """Both servers say the same of the same conversation, where the two templates write the same."""
    with chat_model(lf.model_dir("qwen3"), config, template="chatml") as model:
        tokenizer = model.engine.tokenizer
        messages = talk(lf, "user", "assistant", "user", "assistant", "user", m3="GLOBAL", m4=1)
        messages[1]["content"] += f"<think>{lf.MARKS[8]}</think>"
        ours = prompt_of(model, messages, TypedText("Be brief.", L))
        ids = ours["inputs"][0].tolist()
        chat = [{"role": "system", "content": "Be brief.", "semantic_type": "LANDMARK"}, *messages]
        prompt = prompt_types(ChatTyper(tokenizer, config).fields(chat, ids), len(ids), config)
        assert prompt.types.tolist() == ours["semantic_ids"][0].tolist()
        assert prompt.turns is None or prompt.turns.tolist() == ours["turn_ids"][0].tolist()


def test_pictures_have_the_type_of_their_message(lf, tmp_path):
    files = lf.images(tmp_path, [(56, 56), (84, 56)])
    directory = lf.model_dir("qwen2_5_vl")
    with chat_model(directory, template="qwen2_vl") as model:
        messages = talk(lf, "user", "assistant", "user")
        messages[2]["content"] = "<image>" + messages[2]["content"]
        messages[0]["content"] = "<image>" + messages[0]["content"]
        gen_kwargs = prompt_of(model, messages, images=files)
        pad = model.engine.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        ids, kinds = gen_kwargs["inputs"][0], gen_kwargs["semantic_ids"][0]
        assert kinds[ids == pad].tolist() == [G] * 4 + [N] * 6
        assert types_of_marks(lf, model, gen_kwargs) == {0: {G}, 1: {N}, 2: {N}}

        unnamed = talk(lf, "user", "assistant", "user")
        gen_kwargs = prompt_of(model, unnamed, images=files)
        assert gen_kwargs["semantic_ids"][gen_kwargs["inputs"] == pad].tolist() == [G] * 10
        assert unnamed == talk(lf, "user", "assistant", "user")  # the caller's messages stay as they are


def test_rules_see_pictures(lf, tmp_path):
    files = lf.images(tmp_path, [(56, 56)])
    config = HSAConfig(rules=[{"media": "image", "type": "NOISE"}])
    with chat_model(lf.model_dir("qwen2_5_vl"), config, template="qwen2_vl") as model:
        gen_kwargs = prompt_of(model, talk(lf, "user"), images=files)
        pad = model.engine.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        assert gen_kwargs["semantic_ids"][gen_kwargs["inputs"] == pad].tolist() == [N] * 4
        assert types_of_marks(lf, model, gen_kwargs) == {0: {G}}


def test_images_that_a_template_puts_in_front_go_with_what_follows(lf, served, monkeypatch):
    monkeypatch.setattr(
        type(served.engine.template.mm_plugin),
        "process_token_ids",
        lambda self, ids, labels, *args: ([5, 6, *ids], labels),
    )
    gen_kwargs = prompt_of(served, talk(lf, "user", m0=1))
    assert gen_kwargs["inputs"][0, :2].tolist() == [5, 6]
    assert gen_kwargs["semantic_ids"][0, :3].tolist() == [L] * 3


def test_chat_types_are_training_types(lf, served, tmp_path):
    """The prompt of a conversation has the types that its prefix had in training."""
    types = ["GLOBAL", "NOISE", "LANDMARK", "LANDMARK"]
    messages = lf.dialogue(types)
    data = lf.write_data(tmp_path, data=[{"messages": messages, "system": lf.MARKS[9]}])
    row = lf.prepare(lf.args(data, "data", template="qwen3_nothink"), HSA).rows()[0]
    gen_kwargs = prompt_of(served, messages[:3], lf.MARKS[9])
    length = gen_kwargs["inputs"].shape[1]
    assert list(row["input_ids"][:length]) == gen_kwargs["inputs"][0].tolist()
    assert list(row["semantic_ids"][:length]) == gen_kwargs["semantic_ids"][0].tolist()


@pytest.mark.parametrize(
    "message, problem",
    [
        ({"role": "user", "content": None}, r"message 0 \(user\): content must be a text"),
        ({"role": "user", "content": "a", "semantic_type": "KEY"}, r"message 0 \(user\): Unknown semantic type 'KEY'"),
        ({"role": "user", "content": "a", "semantic_type": 7}, "Unknown semantic type 7"),
    ],
)
def test_bad_messages_are_named(message, problem):
    with pytest.raises(ValueError, match=problem):
        type_messages([message], None, HSA)


# -- answers ---------------------------------------------------------------------------------------------------


def test_answers_are_those_of_full_forwards(lf, served):
    messages = talk(lf, "user", "assistant", "user", "assistant", "user")
    expected = greedy(served.engine.model, prompt_of(served, messages), N)
    text = served.engine.tokenizer.decode(expected, skip_special_tokens=True)
    (answer,) = served.chat(messages)
    assert answer.response_text == text
    assert "".join(served.stream_chat(messages)) == text


@pytest.mark.parametrize(
    "rules",
    [
        [{"role": "assistant", "turn": 1, "type": "NOISE"}, {"tag": "none", "type": "GLOBAL"}],
        [{"tag": "none", "type": "GLOBAL"}, {"role": "assistant", "type": "NOISE"}],
    ],
)
def test_rules_type_what_is_generated(lf, rules):
    """By the turn of the reply, and by its text, for which generation needs the tokenizer."""
    config = HSAConfig(noise_window=4, noise_decay=0.3, rules=rules, backend="dense")
    with chat_model(lf.model_dir("qwen3"), config) as model:
        messages = talk(lf, "user", "assistant", "user")
        expected = greedy(model.engine.model, prompt_of(model, messages), N)
        assert expected != greedy(model.engine.model, prompt_of(model, messages), G)
        text = model.engine.tokenizer.decode(expected, skip_special_tokens=True)
        assert model.chat(messages)[0].response_text == text
        assert "".join(model.stream_chat(messages)) == text


def test_a_turn_added_to_the_conversation(lf, served):
    messages = talk(lf, "user", "assistant", "user")
    messages.append({"role": "assistant", "content": "".join(served.stream_chat(messages))})
    messages.append({"role": "user", "content": lf.MARKS[5], "semantic_type": "LANDMARK"})
    expected = greedy(served.engine.model, prompt_of(served, messages), N)
    assert served.chat(messages)[0].response_text == served.engine.tokenizer.decode(expected, skip_special_tokens=True)


def test_rules_type_what_is_being_written(lf):
    """Rules that read the text or count turns get what they need."""
    rules = [{"tag": "think", "type": "NOISE"}, {"role": "assistant", "turn": 1, "type": "LANDMARK"}]
    with chat_model(lf.model_dir("qwen3"), HSAConfig(rules=rules)) as model:
        messages = talk(lf, "user", "assistant", "user")
        assert model.chat(messages)[0].response_text == "".join(model.stream_chat(messages))
        tagger = prompt_of(model, messages)["tagger"]
        assert tagger.tag(torch.tensor([[5]])).tolist() == [[L]]
        assert prompt_of(model, messages[:1])["tagger"].tag(torch.tensor([[5]])).tolist() == [[G]]


def test_several_answers_to_one_request(lf, served):
    answers = served.chat(talk(lf, "user"), num_return_sequences=3, temperature=1.5, do_sample=True)
    assert len(answers) == 3


def test_a_model_without_hsa_runs_as_it_is(lf):
    directory = lf.model_dir("qwen3")
    plain = ChatModel({"model_name_or_path": str(directory), "template": "qwen3_nothink", "do_sample": False})
    messages = talk(lf, "user", "assistant", "user")
    expected = plain.chat(messages, max_new_tokens=NEW)[0].response_text
    with chat_model(directory, "saved") as model:
        assert get_state(model.engine.model) is None
        assert "semantic_ids" not in prompt_of(model, messages)
        assert model.chat(messages)[0].response_text == expected
        assert "".join(model.stream_chat(messages)) == expected


def test_the_saved_rules_are_found(lf, tmp_path):
    from hsa_factory import tiny

    tiny.save_tiny("qwen3", tmp_path, [], tokenizer=lf.new_tokenizer())
    HSA.save_pretrained(tmp_path)
    with chat_model(tmp_path, "saved") as model:
        assert get_state(model.engine.model).config == HSA


def test_webchat(lf, served):
    """LLaMA-Factory's web page streams through the same engine."""
    from llamafactory.webui.chatter import WebChatModel

    web = WebChatModel(SimpleNamespace(), lazy_init=True)
    web.engine, web._loop = served.engine, served._loop
    messages = talk(lf, "user", "assistant", "user")
    options = {"max_new_tokens": NEW, "top_p": 1.0, "temperature": 0.0, "skip_special_tokens": True}
    options |= {"escape_html": False, "enable_thinking": False}
    if "seed" in inspect.signature(web.stream).parameters:  # from LLaMA-Factory 0.9.6 on
        options["seed"] = 1
    pieces = list(web.stream([], messages, "en", "", "", None, None, None, **options))
    assert pieces[-1][1][-1] == {"role": "assistant", "content": served.chat(messages)[0].response_text}


# -- streams that fail or are left -----------------------------------------------------------------------------


def read_some(model, messages, number, **options):
    """Read some pieces of a stream, then leave it."""

    async def read():
        stream = model.engine.stream_chat(messages, **options)
        pieces = [await anext(stream) for _ in range(number)]
        await stream.aclose()
        return pieces

    return asyncio.run_coroutine_threadsafe(read(), model._loop).result(timeout=120)


@pytest.mark.parametrize("streamed", [True, False])
def test_an_error_while_generating_reaches_the_reader(lf, served, monkeypatch, streamed):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory, say")

    with monkeypatch.context() as patched:
        patched.setattr(served.engine.model, "generate", fail)
        with pytest.raises(RuntimeError, match="out of memory, say"):
            list(served.stream_chat(talk(lf, "user"))) if streamed else served.chat(talk(lf, "user"))
    assert list(served.stream_chat(talk(lf, "user")))


def test_a_stream_that_nobody_reads_ends(lf, served):
    before = threading.active_count()
    began = time.process_time()
    assert served.chat(talk(lf, "user"), max_new_tokens=500)[0].finish_reason == "length"
    assert len(read_some(served, talk(lf, "user"), 1, max_new_tokens=30_000)) == 1
    assert served.chat(talk(lf, "user"))
    assert time.process_time() - began < 20  # 30,000 tokens take a minute and more
    deadline = time.monotonic() + 60
    while threading.active_count() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if "run" in thread.name]


def test_a_stream_ends_with_its_thread(lf, served, monkeypatch):
    """A process that ends after the last piece, while the thread is still at work, would be aborted."""
    threads, stock = [], served.engine.model.generate.former

    def generate(*args, **kwargs):
        threads.append(threading.current_thread())
        output = stock(*args, **kwargs)  # the reader has all pieces
        time.sleep(0.3)
        return output

    monkeypatch.setattr(served.engine.model.generate, "former", generate)
    assert list(served.stream_chat(talk(lf, "user")))
    assert len(threads) == 1 and not threads[0].is_alive()


def test_generations_do_not_overlap(lf, served, monkeypatch):
    """Even if LLaMA-Factory lets several requests in at once (`MAX_CONCURRENT`)."""
    monkeypatch.setattr(served.engine, "semaphore", asyncio.Semaphore(8))
    running, most, lock = 0, 0, threading.Lock()
    stock = served.engine.model.generate.former  # called when the model is free

    def generate(*args, **kwargs):
        nonlocal running, most
        with lock:
            running, most = running + 1, max(most, running + 1)
        time.sleep(0.02)
        try:
            return stock(*args, **kwargs)
        finally:
            with lock:
                running -= 1

    messages = talk(lf, "user", "assistant", "user")
    expected = served.chat(messages)[0].response_text
    monkeypatch.setattr(served.engine.model.generate, "former", generate)

    async def ask(streamed):
        if streamed:
            return "".join([piece async for piece in served.engine.stream_chat(messages)])
        return (await served.engine.chat(messages))[0].response_text

    async def ask_all():
        return await asyncio.gather(*(ask(number % 2 == 0) for number in range(6)))

    answers = asyncio.run_coroutine_threadsafe(ask_all(), served._loop).result(timeout=60)
    assert answers == [expected] * 6 and most == 1


def test_a_request_whose_reader_left_while_it_waited_generates_nothing(lf, served, monkeypatch):
    generated = []
    monkeypatch.setattr(served.engine.model.generate, "former", lambda *args, **kwargs: generated.append(args))

    async def ask_and_leave():
        asking = asyncio.ensure_future(anext(served.engine.stream_chat(talk(lf, "user"))))
        while not (waiting := [thread for thread in threading.enumerate() if thread not in before]):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # now it waits for its turn
        asking.cancel()
        await asyncio.wait([asking])
        return waiting

    before = threading.enumerate()
    with generation_lock(get_state(served.engine.model)):  # somebody else has his turn
        waiting = asyncio.run_coroutine_threadsafe(ask_and_leave(), served._loop).result(timeout=120)
    assert len(waiting) == 1
    waiting[0].join(timeout=60)
    assert not waiting[0].is_alive() and not generated


def test_a_request_makes_one_tagger(lf, served, monkeypatch):
    made = []
    stock = ours.make_tagger
    monkeypatch.setattr(ours, "make_tagger", lambda *args: made.append(args) or stock(*args))
    served.chat(talk(lf, "user"))
    assert len(made) == 1


# -- refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["vllm", "sglang"])
@pytest.mark.parametrize("hsa", [HSA, True, "saved"])
def test_other_engines_are_refused_with_the_reason(tmp_path, backend, hsa):
    HSA.save_pretrained(tmp_path)
    args = {"model_name_or_path": str(tmp_path), "template": "qwen3", "infer_backend": backend}
    message = f"`infer_backend: {backend}` cannot run a model with HSA: .*every key stays visible.*infer_backend: hugg"
    with pytest.raises(ValueError, match=message), integrate(hsa):
        ChatModel(args)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_other_engines_are_left_to_models_without_hsa(tmp_path):
    args = {"model_name_or_path": str(tmp_path), "template": "qwen3", "infer_backend": "vllm"}
    with pytest.raises(ImportError, match="vllm"), integrate("saved"):
        ChatModel(args)


@pytest.mark.parametrize("option", [{"use_unsloth": True}, {"mixture_of_depths": "load"}])
def test_what_replaces_the_attention_is_refused(lf, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"`{name}` cannot be combined with HSA"), integrate(HSA):
        ChatModel({"model_name_or_path": str(lf.model_dir("qwen3")), "template": "qwen3", **option})


def test_other_values_than_those_are_refused():
    with pytest.raises(ValueError, match="hsa = 'yes' is not allowed"), integrate("yes"):
        pass


def test_the_engine_is_given_back():
    stock = hf_engine.HuggingfaceEngine.__dict__["_process_args"]
    with integrate(HSA):
        assert hf_engine.HuggingfaceEngine.__dict__["_process_args"] is not stock
    assert hf_engine.HuggingfaceEngine.__dict__["_process_args"] is stock and isinstance(stock, staticmethod)
