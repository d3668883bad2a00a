"""A server of a vision-language model: pictures in messages and parts, over many turns, and what is refused."""

import base64
import io

import pytest
import torch
from PIL import Image
from servers import Server
from serving_checkpoints import save_checkpoint

from hsa_factory import HSAConfig, tiny
from hsa_factory.loss_weights import LossWeightsConfig
from hsa_factory.training.chat_template import ChatTemplate
from hsa_factory.training.encoding import encode_typed
from hsa_factory.training.messages import read_conversation


CONFIG = HSAConfig(
    noise_window=20,
    default_type="NOISE",
    generated_type="LANDMARK",
    rules=[{"role": "user", "contains": "apple", "type": "LANDMARK"}],
)
CHAT, TOKENS = "/v1/chat/completions", "/inference/v1/generate"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def model(directory, tiny_tokenizer):
    return save_checkpoint(directory, tiny_tokenizer, "qwen2_5_vl", CONFIG).eval()


@pytest.fixture(scope="module")
def processor(tiny_tokenizer):
    return tiny.build_processor("qwen2_5_vl", tiny_tokenizer)


@pytest.fixture(scope="module")
def server(directory, model, tmp_path_factory):
    options = ("--max-model-len", "4096", "--num-gpu-blocks-override", "600", "--enable-prompt-tokens-details")
    options += ("--max-num-batched-tokens", "64", "--enable-scale-out")
    with Server(directory, tmp_path_factory.mktemp("log") / "log", *options) as server:
        yield server


def picture(rng, size=(112, 140)):
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype="uint8"))


def shown(image, kind=None):
    """Return a part with a picture."""
    return {"type": "image", "image": image} | ({} if kind is None else {"semantic_type": kind})


def said(text, kind=None):
    return {"type": "text", "text": text} | ({} if kind is None else {"semantic_type": kind})


def user(*parts, kind=None):
    return {"role": "user", "content": list(parts)} | ({} if kind is None else {"semantic_type": kind})


def as_sent(messages):
    """Return messages as OpenAI's clients send them."""
    return [{**message, "content": _as_sent(message["content"])} for message in messages]


def _as_sent(content):
    return content if isinstance(content, str) else [_part_as_sent(part) for part in content]


def _part_as_sent(part):
    if "image" not in part:
        return part
    file = io.BytesIO()
    part["image"].save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {**{name: part[name] for name in part if name != "image"}, "type": "image_url", "image_url": {"url": url}}


@torch.no_grad()
def answered(model, processor, messages, number=16, length=None):
    """Return ids and answer of the model itself, typed as in training; every message says its type, or a rule does."""
    read = read_conversation(messages, CONFIG, LossWeightsConfig())
    encoded, tokens = encode_typed(ChatTemplate(processor), read, {})
    header = processor.tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    start = 0 if length is None else len(encoded.input_ids) + len(header) - length
    ids = torch.tensor([[*encoded.input_ids, *header][start:]])
    types = [*tokens.semantic_ids.tolist(), *[read.facts[-1].semantic_type] * len(header)][start:]
    pictures = [
        part["image"] for m in messages if isinstance(m["content"], list) for part in m["content"] if "image" in part
    ]
    seen = processor.image_processor(images=pictures, return_tensors="pt")
    seen["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
    options = {"max_new_tokens": number, "do_sample": False, "eos_token_id": None, "tokenizer": processor.tokenizer}
    output = model.generate(input_ids=ids, semantic_ids=torch.tensor([types]), **seen, **options)
    return ids[0].tolist(), output[0, ids.shape[1] :].tolist(), types


def test_messages_parts_and_rules(server, model, processor, rng):
    task, reply = {"role": "system", "content": "You are a robot.", "semantic_type": "GLOBAL"}, "It opens the fridge. "
    spoken = {"role": "assistant", "content": reply * 5, "semantic_type": "LANDMARK"}
    talks = [
        [task, user(shown(picture(rng)), said("take it " * 9), kind="GLOBAL")],
        [task, user(said("see "), shown(picture(rng)), shown(picture(rng, (224, 224))), kind="NOISE"), spoken,
         user(shown(picture(rng)), said("the apple")), spoken, user(said("the fridge opens " * 20), kind="NOISE")],
        [user(shown(picture(rng), "NOISE"), said("the table " * 9, "GLOBAL"), shown(picture(rng), "LANDMARK"), kind="GLOBAL"),
         spoken, user(said("the fridge opens " * 20), kind="NOISE")],
    ]  # fmt: skip
    for messages in talks:
        ids, right, types = answered(model, processor, messages)
        assert server.chat(as_sent(messages)) == (ids, right)
    places = [place for place, token in enumerate(ids) if token == model.config.image_token_id]
    assert {types[place] for place in places} == {1, 2}
    untyped = [{"role": message["role"], "content": message["content"]} for message in as_sent(talks[0])]
    assert server.chat(untyped)[1] == answered(model, processor, talks[0])[1]  # the roles' types are the same


def test_a_conversation_with_a_picture_each_turn(server, model, processor, rng):
    messages, known, freed = (
        [user(said("take the red one"), kind="GLOBAL")],
        0,
        server.gauge("hsa_factory:kv_blocks_freed"),
    )
    messages[0]["content"].append(shown(picture(rng)))
    for turn in range(8):
        body = {"max_tokens": 8, "temperature": 0, "return_token_ids": True, "ignore_eos": True}
        status, answer = server.post(CHAT, {"messages": as_sent(messages), **body})
        assert status == 200, answer
        ids, right, _ = answered(model, processor, messages, 8)
        assert (answer["prompt_token_ids"], answer["choices"][0]["token_ids"]) == (ids, right)
        assert ((answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0) >= known - 32
        known = len(ids)
        messages.append({"role": "assistant", "content": f"It opens {turn}.", "semantic_type": "LANDMARK"})
        messages.append(user(shown(picture(rng)), said(f"the fridge {turn}"), kind="NOISE"))
    assert server.gauge("hsa_factory:kv_blocks_freed") > freed and server.gauge("hsa_factory:kv_blocks_held") == 0


def test_digits_of_the_prompt_as_it_was_sent(server, model, processor, rng):
    messages = [user(shown(picture(rng)), said("the fridge opens " * 20), kind="NOISE")]
    template = processor.tokenizer.apply_chat_template(
        as_sent_without(messages), tokenize=True, add_generation_prompt=True, return_dict=True
    )
    digits = "2" * len(template["input_ids"])
    plain = [{"role": "user", "content": as_sent(messages)[0]["content"]}]
    right = answered(model, processor, messages)
    assert server.chat(plain, vllm_xargs={"hsa_types": digits}) == right[:2]
    status, answer = server.post(CHAT, {"messages": plain, "vllm_xargs": {"hsa_types": "2" * len(right[0])}})
    assert status == 400 and f"the prompt has {len(digits)} tokens" in answer["error"]["message"]
    assert "picture" in answer["error"]["message"]


def as_sent_without(messages):
    """Return messages with pictures of which nothing is said."""
    return [
        {"role": m["role"], "content": [{"type": p["type"], "text": p.get("text", "")} for p in m["content"]]}
        for m in messages
    ]


def test_a_prompt_that_is_cut_before_its_pictures(server, model, processor, rng):
    messages = [user(said("the fridge opens " * 20), shown(picture(rng)), said("it opens " * 9), kind="NOISE")]
    length = len(answered(model, processor, messages)[0]) - 30
    right = answered(model, processor, messages, length=length)
    assert server.chat(as_sent(messages), truncate_prompt_tokens=length) == right[:2]


def test_pictures_in_anthropics_form(server, rng):
    url = as_sent([user(shown(picture(rng)))])[0]["content"][0]["image_url"]["url"]
    source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
    messages = [{"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "see"}]}]
    status, answer = server.post("/v1/messages", {"messages": messages, "max_tokens": 4, "temperature": 0})
    assert status == 200 and answer["usage"]["output_tokens"] == 4


def test_pictures_by_token(server, rng):
    """What is rendered comes back with its pictures, past vLLM's renderer."""
    messages, body = as_sent([user(said("see "), shown(picture(rng)))]), {"max_tokens": 4, "temperature": 0}
    right = server.chat(messages, 4)[1]
    status, rendered = server.post(f"{CHAT}/render", {"messages": messages, "ignore_eos": True, **body})
    assert status == 200
    answer = server.post(TOKENS, rendered)[1]
    assert answer["choices"][0]["token_ids"] == right
    params = rendered["sampling_params"]
    wrong = {**params, "extra_args": {"hsa_types": "0" * len(rendered["token_ids"])}}
    status, answer = server.post(TOKENS, {**rendered, "sampling_params": wrong})
    assert status == 400 and "one digit a token, and one for a picture" in answer["error"]["message"]


def test_choices_echo_and_pictures_that_the_server_has(server, rng):
    shown_again = {"type": "image_url", "image_url": None, "uuid": "first"}
    (message,) = as_sent([user({**shown(picture(rng)), "uuid": "first"}, said("see "), kind="NOISE")])
    ids, right = server.chat([message], 4)
    assert server.chat([{**message, "content": [shown_again, said("see ")]}], 4) == (ids, right)
    body = {"messages": [message], "max_tokens": 4, "return_token_ids": True, "ignore_eos": True}
    status, answer = server.post(CHAT, {**body, "n": 2, "temperature": 1, "top_k": 1, "prompt_logprobs": 1})
    assert status == 200 and len(answer["prompt_logprobs"]) == len(ids)
    assert [choice["token_ids"] for choice in answer["choices"]] == [right] * 2


def film(url, **more):
    return [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}, **more}]}]


def test_what_is_refused(server, rng):
    hello = user(said("the fridge opens " * 9), shown(picture(rng)), said("hello"))
    sent = as_sent([hello])
    wrong = as_sent([user({**shown(picture(rng)), "semantic_type": "LOUD"})])
    broken = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]
    data = sent[0]["content"][1]["image_url"]["url"].partition(",")[2]
    frames = film(f"data:video/jpeg;base64,{data},{data}", semantic_type="NOISE")
    sound = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]}]
    misplaced = [{"role": "user", "content": [{**sent[0]["content"][1], "image_url": {"semantic_type": 1}}]}]
    for messages, more, reason in (
        (wrong, {}, "messages[0].content[0].semantic_type: "),
        (broken, {}, ""),
        (misplaced, {}, "messages[0].content[0].image_url.semantic_type is not read here"),
        (sent, {"truncate_prompt_tokens": 45, "truncation_side": "right"}, "image"),  # within it
        (sent, {"truncate_prompt_tokens": 5}, "truncate_prompt_tokens=5: cuts away a picture"),
        (sent, {"truncate_prompt_tokens": 20, "truncation_side": "right"}, "=20: cuts away a picture"),
        (frames, {}, "video: served with HSA on vLLM are text and pictures"),
        (sound, {}, "audio"),
    ):
        status, answer = server.post(CHAT, {"messages": messages, "max_tokens": 1, **more})
        assert status == 400 and reason in answer["error"]["message"], answer
        assert server.post(CHAT, {"messages": sent, "max_tokens": 1})[0] == 200
