"""What the server lets in, and what it says to the rest; without a model, so that everything can be tried."""

import base64
import io
import json
import os
import re
from types import SimpleNamespace

import pytest
from PIL import Image


pytest.importorskip("fastapi")
pytest.importorskip("sse_starlette")
pytest.importorskip("httpx")

from fastapi import HTTPException  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402
from llamafactory import launcher  # noqa: E402
from llamafactory.api import app as llamafactory_app  # noqa: E402

from hsa_factory.llamafactory.chat.api import api_seams  # noqa: E402
from hsa_factory.llamafactory.chat.hf_engine import _encode_in_thread  # noqa: E402
from hsa_factory.llamafactory.chat.request import TypedChatCompletionRequest  # noqa: E402
from hsa_factory.llamafactory.launch import pass_on  # noqa: E402
from hsa_factory.llamafactory.seams import installed  # noqa: E402


USER = {"role": "user", "content": "go"}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
HALF = "\ud83d"
ORIGIN = {"origin": "https://page.example", "access-control-request-method": "POST"}


class Model:
    """Answers "yes", and remembers what it was asked."""

    def __init__(self):
        self.engine = SimpleNamespace(
            can_generate=True, name="none", template=SimpleNamespace(extract_tool=lambda text: text)
        )

    async def achat(self, messages, *args, **options):
        self.asked = (messages, *args)
        return [SimpleNamespace(response_text="yes", response_length=1, prompt_length=1, finish_reason="stop")]

    async def astream_chat(self, messages, *args, **options):
        self.asked = (messages, *args)
        yield "yes"


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def client(model, request, monkeypatch):
    """A client of the server; a parameter holds the environment that it is started in."""
    for name in ("API_KEY", "API_HOST", "API_CORS_ORIGINS", "API_MAX_BODY_MB", "API_MAX_CHARACTERS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in getattr(request, "param", {}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("API_VERBOSE", "0")
    with installed(api_seams()):
        yield TestClient(llamafactory_app.create_app(model), raise_server_exceptions=False)


def post(client, body, **options):
    """Send what `httpx` itself would refuse to write, too."""
    content = body if isinstance(body, (str, bytes)) else json.dumps({"model": "m", "messages": [USER], **body})
    return client.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}, **options
    )


def picture(url):
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


def png():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def call(arguments, name="f"):
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def nested(depth):
    value = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def test_a_good_request_is_answered(client, model):
    assert post(client, {}).json()["choices"][0]["message"]["content"] == "yes"
    assert post(client, picture(png())).status_code == 200
    (images,) = model.asked[3:4]
    assert images[0].size == (8, 8)
    many = {"role": "user", "content": "é" * 900_000 + "🍎"}
    assert post(client, {"messages": [many], "tools": [TOOL]}).status_code == 200


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"messages": [{**USER, "semanticType": 1}]}, "messages[0].semanticType: there is no such key. Did you mean 'sem"),
        ({"messages": [{**USER, "Semantic_Type": 1}]}, "messages[0].Semantic_Type: there is no such key. Did you mean"),
        ({"messages": [{**USER, "semantic_tag": 1}]}, "messages[0].semantic_tag is not read here. Give each message its "),
        ({"messages": [USER], "semantic_type": 1}, "semantic_type is not read here. Give each message its 'semantic_type'."),
        ({"messages": [USER], "vllm_xargs": {"hsa_types": "0"}}, "vllm_xargs.hsa_types is not read here. Give each message"),
        ({"messages": [{**USER, "content": [{"type": "text", "text": "x", "semantictype": 1}]}]}, "content[0].semantictype is"),
        ({"messages": [{**USER, "semantic_type": "NOISE"}], "tools": [TOOL], "hsa_types": None}, None),
        ({"messages": [{"role": "developer", "content": "x", "kind": 1, "types": 2}, USER]}, None),
    ],
)  # fmt: skip
def test_keys_of_hsa_that_nobody_would_read(client, body, reason):
    """VLLM's server answers the same; a model without HSA is another's affair, whose keys may be like ours."""
    request = TypedChatCompletionRequest(model="m", **body)
    if reason is None:
        request.check_keys(has_hsa=True)
        return
    with pytest.raises(HTTPException, match=re.escape(reason)) as refused:
        request.check_keys(has_hsa=True)
    assert refused.value.status_code == 400
    answer = post(client, body)
    is_ours = "vllm_xargs" in body or "semantic_type" in body
    assert (answer.status_code == 400) == is_ours == ("this server's model has no HSA" in answer.text)


BAD = {
    "content": (
        {"messages": [{"role": "user", "content": "a" + HALF}]},
        "messages[0].content: holds half a character",
    ),
    "part": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]},
        "messages[0].content[0].text: holds half",
    ),
    "role": ({"messages": [{"role": HALF, "content": "a"}]}, "messages[0].role: holds half"),
    "model": ({"model": HALF}, "model: holds half"),
    "key": ({HALF: 1}, "holds half a character"),
    "arguments": (
        {"messages": [USER, call(HALF), {"role": "tool", "content": "x"}]},
        "messages[1].tool_calls[0].function.arguments: holds half",
    ),
    "called": (
        {"messages": [USER, call("{}", HALF), {"role": "tool", "content": "x"}]},
        "messages[1].tool_calls[0].function.name: holds half",
    ),
    "tool": (
        {"tools": [{**TOOL, "function": {**TOOL["function"], "name": HALF}}]},
        "tools[0].function.name: holds half",
    ),
    "url": (picture(HALF), "messages[0].content[0].image_url.url: holds half"),
    "stop": ({"stop": [HALF]}, "stop[0]: holds half"),
    "nan": ({"temperature": float("nan")}, "temperature: nan is not a finite number"),
    "infinity": ({"top_p": float("inf")}, "top_p: inf is not"),
    "nan in a tool": (
        {"tools": [{**TOOL, "function": {**TOOL["function"], "parameters": {"a": [float("-inf")]}}}]},
        "tools[0].function.parameters.a[0]: -inf is not",
    ),
    "too large a number": ('{"model": "m", "messages": [], "temperature": 1e999}', "temperature: inf is not"),
    "deep": (
        {"tools": [{**TOOL, "function": {**TOOL["function"], "parameters": nested(200)}}]},
        "tools[0].function: nested more than 100 levels",
    ),
    "very deep": ("[" * 100_000, "error parsing the body"),
    "no base64": (picture("data:image/png;base64,####"), "messages[0].content[0].image_url.url: is not valid base64"),
    "half a base64": (picture("data:image/png;base64,abc"), "is not valid base64"),
    "no picture": (picture("data:image/png;base64,aGVsbG8="), "image_url.url: is no picture that can be read"),
    "nothing": (picture("data:image/png;base64,"), "is no picture"),
    "another format": (picture("data:image/tiff;base64,aGVsbG8="), "image_url.url: begins with 'data:image/tiff"),
    "no data URI": (picture("data:aGVsbG8="), "a data URI must begin with data:FORMAT;base64"),
    "audio": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,#"}}]}
            ]
        },
        "audio_url.url: is not valid base64",
    ),
    "a part without": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0]: a part of type 'image_url' needs 'image_url'",
    ),
    "a text without": ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "needs 'text'"),
    "no function": ({"tools": [{"type": "code_interpreter"}]}, "tools[0].function: is missing"),
    "no answers": ({"n": 0}, "n: 0 is not allowed"),
    "too many answers": ({"n": 10**7}, "n: 10000000 is not allowed"),
    "cold": ({"temperature": 1e-300}, "temperature: 1e-300 is too small"),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_by_name(client, model, name, streamed):
    body, problem = BAD[name]
    response = post(client, {**body, "stream": streamed} if isinstance(body, dict) else body)
    assert response.status_code == 400
    assert problem in response.json()["detail"] == response.json()["error"]["message"]
    assert not hasattr(model, "asked")


def test_a_picture_that_is_cut_off(client):
    response = post(client, picture(png()[:82]))
    assert response.status_code == 400 and "The request cannot be read" in response.json()["detail"]


def test_fields_of_a_wrong_kind_are_named_without_their_values(client):
    response = post(client, {"messages": [{"role": "judge", "content": "secret " * 1000}] * 100})
    assert response.status_code == 422 and len(response.content) < 10_000
    assert "messages.0.role: Input should be 'user'" in response.json()["error"]["message"]
    assert "secret" not in response.text


# -- limits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "go " * 700_000}]},
        {"messages": [USER] * 101_000},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "go " * 1000}] * 700}]},
        {
            "tools": [
                {
                    **TOOL,
                    "function": {**TOOL["function"], "parameters": {"image_url": {"url": "data:" + "a" * 2_100_000}}},
                }
            ]
        },
        {"stop": ["a" * 2_100_000]},
        {"logit_bias": [1] * 510_000},
    ],
)
def test_more_text_than_allowed(client, model, body):
    for streamed in (False, True):
        response = post(client, {**body, "stream": streamed})
        assert response.status_code == 413
    assert response.status_code == 413 and not hasattr(model, "asked")
    assert "more than 2,000,000 characters" in response.json()["error"]["message"]
    assert "API_MAX_CHARACTERS" in response.json()["detail"]


@pytest.mark.parametrize("client", [{"API_MAX_CHARACTERS": "100", "API_MAX_BODY_MB": "1"}], indirect=True)
def test_limits_of_ones_own(client):
    assert post(client, {}).status_code == 200
    assert post(client, {"messages": [{"role": "user", "content": "a" * 101}]}).status_code == 413
    assert post(client, picture(png())).status_code == 200  # media are not counted as text
    large = "data:image/png;base64," + "A" * 2**20
    response = post(client, picture(large))
    assert response.status_code == 413 and "API_MAX_BODY_MB" in response.json()["error"]["message"]


@pytest.mark.parametrize("client", [{"API_MAX_BODY_MB": "1"}], indirect=True)
def test_a_body_whose_size_is_not_announced(client):
    pieces = (b" " * 2**16 for _ in range(40))
    response = client.post("/v1/chat/completions", content=pieces, headers={"content-type": "application/json"})
    assert response.status_code == 413 and "1,048,576 bytes" in response.json()["detail"]


@pytest.mark.parametrize("name", ["API_MAX_BODY_MB", "API_MAX_CHARACTERS"])
@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_limit_that_is_none(model, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with installed(api_seams()), pytest.raises(ValueError, match=f"{name}='{value}' is not allowed"):
        llamafactory_app.create_app(model)


def test_encoding_waits_for_the_thread_that_asks_for_the_first_piece():
    encoded = []
    stream = _encode_in_thread(lambda *args: encoded.append(args) or iter("ab").__next__, 1, 2)
    assert encoded == []
    assert [stream(), stream()] == ["a", "b"] and encoded == [(1, 2)]


# -- who may call ----------------------------------------------------------------------------------------------


def test_no_page_of_another_origin_may_call(client):
    answer = client.options("/v1/chat/completions", headers=ORIGIN)
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert not any(name.startswith("access-control") for name in post(client, {}).headers)


@pytest.mark.parametrize(
    "client, allowed, credentials",
    [
        ({"API_CORS_ORIGINS": "https://page.example, http://localhost:3000"}, "https://page.example", "true"),
        ({"API_CORS_ORIGINS": "*"}, "*", None),
        ({"API_CORS_ORIGINS": "https://other.example"}, None, "true"),
    ],
    indirect=["client"],
)
def test_pages_that_are_named_may_call(client, allowed, credentials):
    answer = client.options("/v1/chat/completions", headers=ORIGIN)
    assert answer.headers.get("access-control-allow-origin") == allowed
    assert answer.headers.get("access-control-allow-credentials") == credentials


@pytest.mark.parametrize("client", [{"API_KEY": "secret"}], indirect=True)
def test_a_key(client):
    assert post(client, {}).status_code == 401
    assert client.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200


@pytest.mark.parametrize(
    "command, variable",
    [("api", "API_HOST"), ("webchat", "GRADIO_SERVER_NAME"), ("webui", "GRADIO_SERVER_NAME"), ("chat", None)],
)
@pytest.mark.parametrize("given", [None, "0.0.0.0"])
def test_servers_listen_on_this_machine_unless_told_otherwise(monkeypatch, command, variable, given):
    seen = {}
    for name in ("API_HOST", "GRADIO_SERVER_NAME"):
        monkeypatch.delenv(name, raising=False)
    if given and variable:
        monkeypatch.setenv(variable, given)
    monkeypatch.setattr(launcher, "launch", lambda: seen.update(os.environ))
    pass_on(command, ["--model_name_or_path", "none"])
    for name in ("API_HOST", "GRADIO_SERVER_NAME"):
        assert seen.get(name) == ((given or "127.0.0.1") if name == variable else None)
        assert os.environ.get(name) == (given if name == variable else None)


def test_a_server_without_hsa_is_as_careful(monkeypatch, tmp_path):
    names = []
    monkeypatch.setattr(launcher, "launch", lambda: names.append(llamafactory_app.ChatCompletionRequest.__name__))
    file = tmp_path / "api.yaml"
    file.write_text("model_name_or_path: none\nhsa: false\n", "utf-8")
    pass_on("api", [str(file)])
    assert names == ["TypedChatCompletionRequest"]


def test_a_developer_is_the_system(client, model):
    messages = [{"role": "developer", "content": "be brief"}, USER]
    assert client.post("/v1/chat/completions", json={"model": "m", "messages": messages}).status_code == 200
    assert model.asked[1] == "be brief" and len(model.asked[0]) == 1


@pytest.mark.parametrize(
    ("roles", "named"),
    [
        (["user", "user"], "messages[1].role: 'user'"),
        (["user", "assistant", "tool", "tool", "user"], "messages[4].role: 'user'"),
        (["user", "assistant", "system"], "messages[2].role: 'system'"),
        (["system", "assistant"], "messages[1].role: 'assistant'"),
        (["user", "assistant"], "messages: the last one is a reply"),
        (["system"], "messages: there is no message"),
        ([], "messages: there is no message"),
    ],
)
def test_sides_that_do_not_take_turns_are_named(client, roles, named):
    messages = [{"role": role, "content": "x"} for role in roles]
    response = client.post("/v1/chat/completions", json={"model": "m", "messages": messages})
    assert response.status_code == 400 and named in response.json()["detail"]
