"""A server with HSA, as clients see it: types from messages, parts, rules and roles; refusals; gauges; many turns."""

import asyncio
import json
import time

import pytest
import torch
from servers import Server, stream
from serving_checkpoints import save_checkpoint

from hsa_factory import HSAConfig
from hsa_factory.vllm.server.chat_prompt import ChatTyper


CONFIG = HSAConfig(
    noise_window=20,
    default_type="NOISE",
    generated_type="LANDMARK",
    rules=[{"role": "user", "contains": "apple", "type": "LANDMARK"}],
)
TALK = [
    {"role": "system", "content": "You are a robot. It opens the fridge."},
    {"role": "user", "content": "take the red apple " * 20},
    {"role": "assistant", "content": "It opens the fridge. " * 20},
    {"role": "user", "content": "the fridge opens " * 20},
]
PARTS = [
    {"type": "text", "text": "the table " * 20, "semantic_type": "LANDMARK"},
    {"type": "text", "text": "the fridge opens " * 20},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def model(directory, tiny_tokenizer):
    return save_checkpoint(directory, tiny_tokenizer, "qwen3", CONFIG).eval()


@pytest.fixture(scope="module")
def server(directory, model, tmp_path_factory):
    options = ("--max-model-len", "4096", "--num-gpu-blocks-override", "600", "--enable-prompt-tokens-details")
    options += ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-scale-out")
    with Server(directory, tmp_path_factory.mktemp("log") / "log", *options) as server:
        yield server


@torch.no_grad()
def generate(model, ids, types, number=16):
    options = {"max_new_tokens": number, "do_sample": False, "eos_token_id": None}
    output = model.generate(input_ids=torch.tensor([ids]), semantic_ids=torch.tensor([types]), **options)
    return output[0, len(ids) :].tolist()


def types_of(tokenizer, messages, ids, **options):
    fields = ChatTyper(tokenizer, CONFIG).fields(messages, ids, **options)
    return [int(digit) for digit in fields["hsa_types"]]


def test_what_is_on_is_said_at_the_start(server):
    said = server.said()
    assert "HSA is on (" in said and "noise_window=20" in said and "reads semantic_type of messages" in said


@pytest.mark.parametrize(
    "messages",
    [
        TALK,
        TALK[:2],
        [*TALK[:2], {**TALK[2], "semantic_type": "NOISE"}, {**TALK[3], "semantic_type": "global"}],
        [*TALK[:3], {"role": "user", "content": PARTS}],
    ],
    ids=["rules and roles", "two messages", "given types", "parts"],
)
def test_a_chat_is_answered_as_generate_answers_it(server, model, tiny_tokenizer, messages):
    ids, answer = server.chat(messages)
    types = types_of(tiny_tokenizer, messages, ids)
    assert answer == generate(model, ids, types)
    if messages is TALK:  # where types matter to the answer
        assert answer != generate(model, ids, [0] * len(ids))


def test_streams_choices_and_logprobs_are_of_the_same_prompt(server):
    body = {"messages": TALK, "max_tokens": 16, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    _, answer = server.chat(TALK)
    several = {"n": 3, "temperature": 1, "top_k": 1, "logprobs": True, "top_logprobs": 2, "echo": True}
    _, chosen = server.post("/v1/chat/completions", body | several)
    assert [choice["token_ids"] for choice in chosen["choices"]] == [answer] * 3
    _, text = server.post("/v1/chat/completions", body | {"stream": True})
    pieces = [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data: {")]
    assert sum([piece["choices"][0].get("token_ids") or [] for piece in pieces if piece["choices"]], []) == answer


def test_what_ends_an_answer_and_what_it_may_be(server, model, tiny_tokenizer):
    """Stop texts and tokens, the least length, a grammar, tokens ruled out: each on the model's own logits with the types."""
    ids, answer = server.chat(TALK)
    types = types_of(tiny_tokenizer, TALK, ids)

    def ask(**options):
        return server.chat(TALK, **{"ignore_eos": False, **options})[1]

    first = answer.index(answer[5]) + 1
    assert ask(ignore_eos=True, stop_token_ids=[answer[5]]) == answer[:first]
    text = tiny_tokenizer.decode(answer[3])
    stopped = ask(ignore_eos=True, stop=[text])
    assert stopped == answer[: len(stopped)] and text in tiny_tokenizer.decode(stopped)
    assert ask(ignore_eos=True, min_tokens=16) == answer
    other = ask(ignore_eos=True, number=4, logit_bias={str(answer[0]): -100})
    assert other == best(model, ids, types, 4, lambda token: token != answer[0])
    letters = {tiny_tokenizer.convert_tokens_to_ids(letter) for letter in "qz"}
    chosen = ask(number=6, structured_outputs={"regex": "[qz]{9}"})
    assert chosen == best(model, ids, types, 6, lambda token: token in letters)


@torch.no_grad()
def best(model, ids, types, number, is_allowed):
    """Return the best tokens of those that are allowed, one after the other, each LANDMARK."""
    ids, types = list(ids), list(types)
    for _ in range(number):
        logits = model(input_ids=torch.tensor([ids]), semantic_ids=torch.tensor([types])).logits[0, -1]
        ids.append(max(filter(is_allowed, range(len(logits))), key=logits.__getitem__))
        types.append(1)
    return ids[-number:]


def test_beams_are_refused_and_clients_that_vanish_leave_nothing(server):
    body = {"messages": TALK, "max_tokens": 400, "temperature": 0, "ignore_eos": True}
    status, answer = server.post("/v1/chat/completions", body | {"use_beam_search": True, "n": 2})
    assert status == 400 and "use_beam_search" in answer["error"]["message"]

    async def vanish():
        return await asyncio.gather(*(stream(server.port, body, pieces) for pieces in (0, 1, 5)))

    assert asyncio.run(vanish()) == [False] * 3
    end = time.monotonic() + 30
    while server.gauge("hsa_factory:kv_blocks_held") and time.monotonic() < end:
        time.sleep(0.2)
    assert server.gauge("hsa_factory:kv_blocks_held") == 0


def test_prompts_of_tokens(server, model, tiny_tokenizer):
    ids, answer = server.chat(TALK)
    types = types_of(tiny_tokenizer, TALK, ids)
    body = {"prompt": ids, "max_tokens": 16, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    typed = body | {"vllm_xargs": {"hsa_types": "".join(map(str, types))}}
    assert server.post("/v1/completions", typed)[1]["choices"][0]["token_ids"] == answer
    untyped = server.post("/v1/completions", body)[1]["choices"][0]["token_ids"]
    assert untyped == generate(model, ids, [2] * len(ids)) != answer


GENERATE = "/inference/v1/generate"


def test_a_rendered_prompt_has_its_types_with_it(server, model):
    _, answer = server.chat(TALK, 12)  # not 16, vLLM's default, which what is rendered leaves out
    body = {"messages": TALK, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    status, rendered = server.post("/v1/chat/completions/render", body)
    assert status == 200 and "hsa_types" in rendered["sampling_params"]["extra_args"]
    status, generated = server.post(GENERATE, rendered)
    assert status == 200 and generated["choices"][0]["token_ids"] == answer


def test_other_shapes_of_a_prompt(server, model, tiny_tokenizer):
    begun = [*TALK, {"role": "assistant", "content": "It opens", "semantic_type": "GLOBAL"}]
    tools = [{"type": "function", "function": {"name": "walk", "parameters": {"type": "object", "properties": {}}}}]
    for messages, options in (
        (begun, {"continue_final_message": True, "add_generation_prompt": False}),
        (TALK, {"add_generation_prompt": False}),
        (TALK, {"truncate_prompt_tokens": 50}),
        (TALK, {"truncate_prompt_tokens": 50, "truncation_side": "right"}),
        (TALK, {"tools": tools}),
        (TALK, {"response_format": {"type": "text"}}),
        (TALK, {"chat_template_kwargs": {"enable_thinking": False}}),
    ):
        ids, answer = server.chat(messages, **options)
        types = types_of(
            tiny_tokenizer, messages, ids, options=options, tools=options.get("tools"), is_cut=len(ids) == 50
        )
        assert answer == generate(model, ids, types), options


def test_a_developer_is_the_system(server):
    """As in training, and in `hsa-factory api`: no family that is served knows the role."""
    developer = {**TALK[0], "role": "developer", "semantic_type": "LANDMARK"}
    system = {**TALK[0], "semantic_type": "LANDMARK"}
    assert server.chat([developer, *TALK[1:]]) == server.chat([system, *TALK[1:]])


def test_tool_messages(server, model, tiny_tokenizer):
    call = {"id": "1", "type": "function", "function": {"name": "walk", "arguments": '{"to": "table"}'}}
    messages = [
        *TALK[:2],
        {"role": "assistant", "content": "I go.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "the table " * 30, "semantic_type": "LANDMARK"},
    ]
    ids, answer = server.chat(messages)
    written = [*messages[:2], {"role": "assistant", "content": "I go."}, messages[3]]  # the template writes no calls
    assert answer == generate(model, ids, types_of(tiny_tokenizer, written, ids))


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x", "semantic_type": "LOUD"}]},
            "messages[0].semantic_type: ",
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{**PARTS[0], "semantic_type": 9}]}]},
            "content[0].semantic_type",
        ),
        (CHAT, {"messages": [{"role": "user", "content": "x", "semantic_tpye": 1}]}, "Did you mean 'semantic_type'"),
        (CHAT, {**HELLO, "stream": True, "hsa_types": "01"}, "Send it within"),
        (CHAT, {**HELLO, "vllm_xargs": {"hsa_types": "01"}}, "hsa_types has 2 digits"),
        (CHAT, {**HELLO, "vllm_xargs": {"hsa_type": "01"}}, "hsa_type is no field"),
        (CHAT, {**HELLO, "use_beam_search": True, "n": 2}, "use_beam_search: cannot be honoured"),
        (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, "role 'robot' is not allowed"),
        (
            COMPLETIONS,
            {"prompt": [1, 2, 3], "vllm_xargs": {"hsa_types": "01"}},
            "2 digits, but the prompt has 3 tokens",
        ),
        (COMPLETIONS, {"prompt": [1, 2, 3], "vllm_xargs": {"hsa_types": "019"}}, "holds '9' at token 2"),
        (COMPLETIONS, {"prompt": [1, 2, 3], "vllm_xargs": {"hsa_types": [0, 1, 2]}}, "must be a text"),
        (COMPLETIONS, {"prompt": [[1, 2], [3]], "vllm_xargs": {"hsa_types": "01"}}, "prompt 1 of 2"),
        (COMPLETIONS, {"prompt": "x", "semantic_type": 1}, "semantic_type is not read by"),
        (COMPLETIONS, {"prompt": "x", "use_beam_search": True}, "use_beam_search: cannot be honoured"),
        (CHAT, {**HELLO, "vllm_xargs": {"hsa_turns": "0*1"}}, "the rules of this model count no turns"),
        (
            COMPLETIONS,
            {"prompt": [1, 2], "vllm_xargs": {"hsa_turns": "0*2"}},
            "the rules of this model count no turns",
        ),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x", "semantic_type": 1}]}, "is not read by"),
        ("/v1/responses", {"input": "hello"}, "the tokens of this request have no types"),
        ("/v1/responses", {"input": "hello", "vllm_xargs": {"hsa_types": "01"}}, "hsa_types has 2 digits"),
        (
            "/v1/chat/completions/batch",
            {"messages": [HELLO["messages"]] * 2},
            "the tokens of this request have no types",
        ),
        (
            "/v1/chat/completions/batch",
            {"messages": [HELLO["messages"]] * 2, "vllm_xargs": {"hsa_types": "01"}},
            "hsa_types has 2 digits",
        ),
        (GENERATE, {"token_ids": [1, 2, 3], "sampling_params": {}}, "the tokens of this request have no types"),
        (
            GENERATE,
            {"token_ids": [1, 2, 3], "sampling_params": {"extra_args": {"hsa_types": "01"}}},
            "hsa_types has 2 digits, but the prompt has 3 tokens",
        ),
        (GENERATE, {"token_ids": [1], "sampling_params": {}, "vllm_xargs": {"hsa_types": "0"}}, "Send it within"),
        ("/generative_scoring", {"query": "a", "items": ["b"], "label_token_ids": [5]}, "have no types"),
    ],
)
def test_what_is_wrong_is_answered_with_400_and_the_reason(server, path, body, reason):
    status, answer = server.post(path, {"max_tokens": 4, **body})
    assert status == 400 and reason in answer["error"]["message"]
    assert server.post(CHAT, {**HELLO, "max_tokens": 1})[0] == 200  # the engine goes on


def test_messages_in_anthropics_form_are_typed_by_rules_and_roles(server):
    messages = [{"role": "user", "content": "take the apple"}]
    status, answer = server.post("/v1/messages", {"messages": messages, "max_tokens": 4, "temperature": 0})
    assert status == 200 and answer["usage"]["output_tokens"] == 4


def test_fifty_turns_read_only_what_is_new(server, model, tiny_tokenizer):
    messages, known = [TALK[0], {"role": "user", "content": "take the red apple"}], 0
    for turn in range(50):
        body = {"messages": messages, "max_tokens": 8, "temperature": 0, "return_token_ids": True, "ignore_eos": True}
        status, answer = server.post(CHAT, body)
        assert status == 200, answer
        ids, choice = answer["prompt_token_ids"], answer["choices"][0]
        details = answer["usage"].get("prompt_tokens_details") or {}
        assert (details.get("cached_tokens") or 0) >= known - 32
        if turn % 7 == 0:
            assert choice["token_ids"] == generate(model, ids, types_of(tiny_tokenizer, messages, ids), 8)
        known = len(ids)
        messages = [*messages, {"role": "assistant", "content": f"It opens {turn}."}]
        messages.append({"role": "user", "content": f"the fridge opens {turn} " * 3, "semantic_type": "NOISE"})


def test_gauges(server):
    server.chat(TALK)
    assert server.gauge("hsa_factory:kv_blocks_held") == 0 and server.gauge("hsa_factory:kv_share_of_plain") == 1
    assert server.gauge("hsa_factory:kv_blocks_freed") > 0
