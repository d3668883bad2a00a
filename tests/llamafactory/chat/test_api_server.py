"""`hsa-factory api`, served for real: what clients get, what they may do to the server, and that it stays up."""

import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from forked import start


pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("sse_starlette")
httpx = pytest.importorskip("httpx")

from llamafactory.chat import ChatModel  # noqa: E402

from hsa_factory import HSAConfig, cli  # noqa: E402
from hsa_factory.llamafactory import integrate  # noqa: E402


HSA = HSAConfig(noise_window=3, noise_decay=0.4, default_type="NOISE", generated_type="LANDMARK")
OPTIONS = {"template": "qwen3_nothink", "infer_dtype": "float32"}
ENDLESS = {"max_tokens": 30_000, "temperature": 0}  # a minute and more, if nobody stops it
NEW = 12


class Server:
    """A running server and a client of it."""

    def __init__(self, process, url, log):
        self.process, self.url, self.log = process, url, log
        self.client = httpx.Client(base_url=url, timeout=180)

    def post(self, messages, client=None, **options):
        body = {"model": "tiny", "messages": messages, "max_tokens": NEW, "temperature": 0, **options}
        return (client or self.client).post("/chat/completions", json=body)

    def answer(self, messages, **options):
        response = self.post(messages, **options)
        assert response.status_code == 200, response.text
        (choice,) = response.json()["choices"]
        return choice["message"]["content"]

    def events(self, messages, **options):
        """Return what a stream sends, the last "[DONE]" without."""
        body = {"model": "tiny", "messages": messages, "max_tokens": NEW, "temperature": 0, "stream": True, **options}
        with self.client.stream("POST", "/chat/completions", json=body) as response:
            assert response.status_code == 200 and "text/event-stream" in response.headers["content-type"]
            data = [line[len("data: ") :] for line in response.iter_lines() if line.startswith("data: ")]
        assert data.pop() == "[DONE]"
        return [json.loads(item) for item in data]

    def streamed(self, messages, **options):
        return "".join(event["choices"][0]["delta"].get("content") or "" for event in self.events(messages, **options))


@pytest.fixture(scope="module")
def checkpoint(lf, tmp_path_factory):
    """A model with HSA, saved as training saves it."""
    return lf.save_checkpoint(tmp_path_factory.mktemp("served"), HSA)


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "server.log"
    arguments = ["api", "--model_name_or_path", str(checkpoint)]
    arguments += [part for name, value in OPTIONS.items() for part in (f"--{name}", value)]
    environment = {"API_HOST": "127.0.0.1", "API_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    process = start(cli.main, arguments, output=log, environment=environment)
    running = Server(process, f"http://127.0.0.1:{port}/v1", log)
    try:
        deadline = time.monotonic() + 600
        while True:
            try:
                running.client.get("/models")
                break
            except httpx.TransportError:
                assert process.is_alive() and time.monotonic() < deadline, log.read_text("utf-8")
                time.sleep(0.2)
        yield running
    finally:
        running.client.close()
        os.kill(process.pid, signal.SIGINT)
        process.join(timeout=20)
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def expect(checkpoint):
    """What the same model answers in this process; that these are HSA's answers is tested beside it."""
    with integrate("saved"):
        model = ChatModel({"model_name_or_path": str(checkpoint), **OPTIONS, "do_sample": False})

    def answer(messages):
        messages = [dict(message) for message in messages]
        system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
        with integrate("saved"):
            return model.chat(messages, system, max_new_tokens=NEW)[0].response_text

    return answer


@pytest.fixture(autouse=True)
def _stays_up(server, expect, lf):
    """After whatever a test did, the server answers the next one, soon and right."""
    yield
    began = time.monotonic()
    assert server.answer(talk(lf, "user")) == expect(talk(lf, "user"))
    assert time.monotonic() - began < 10 and server.process.is_alive()


def talk(lf, *roles, **types):
    messages = [lf.say(role, lf.MARKS[number] * 4) for number, role in enumerate(roles)]
    for name, kind in types.items():
        messages[int(name[1:])]["semantic_type"] = kind
    return messages


# -- answers ---------------------------------------------------------------------------------------------------


def test_several_turns(server, expect, lf):
    messages = talk(lf, "system", "user")
    for number in range(3):
        reply = server.answer(messages)
        assert reply == expect(messages)
        messages += [lf.say("assistant", reply), lf.say("user", lf.MARKS[5 + number] * 4)]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_message_may_have_a_type(server, expect, lf, streamed):
    ask = server.streamed if streamed else server.answer
    plain = talk(lf, "user", "assistant", "user", "assistant", "user")
    typed = talk(lf, "user", "assistant", "user", "assistant", "user", m0="noise", m1=0, m2="KEY_EVENT", m3="2")
    assert ask(typed) == expect(typed)
    assert ask(plain) == expect(plain)
    assert ask(plain) != ask(typed)


def test_the_system_prompt_may_have_a_type(server, lf):
    messages = talk(lf, "system", "user", "assistant", "user")
    assert server.answer(messages) == server.answer([{**messages[0], "semantic_type": "GLOBAL"}, *messages[1:]])
    assert server.answer(messages) != server.answer([{**messages[0], "semantic_type": "NOISE"}, *messages[1:]])


def test_null_is_no_type(server, lf):
    messages = talk(lf, "user", "assistant", "user")
    assert server.answer([{**message, "semantic_type": None} for message in messages]) == server.answer(messages)


def test_a_stream_says_the_same(server, expect, lf):
    messages = talk(lf, "user", "assistant", "user")
    events = server.events(messages)
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert server.streamed(messages) == expect(messages)


def test_several_clients_at_once(server, expect, lf):
    talks = [talk(lf, *(["user", "assistant"] * (number % 3)), "user") for number in range(8)]
    for number, messages in enumerate(talks):
        messages[-1]["content"] = lf.MARKS[20 + number] * 3

    def ask(number):
        return (server.streamed if number % 2 else server.answer)(talks[number])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert answers == [expect(messages) for messages in talks]
    assert len(set(answers)) > 1


def test_the_openai_client(server, expect, lf):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=server.url, api_key="none")
    messages = talk(lf, "system", "user", m1="LANDMARK")
    options = {"model": "tiny", "max_tokens": NEW, "temperature": 0}
    assert [model.id for model in client.models.list()] == ["gpt-3.5-turbo"]
    for number in range(2):
        reply = client.chat.completions.create(messages=messages, **options)
        assert reply.choices[0].message.content == expect(messages)
        assert reply.usage.completion_tokens <= NEW
        stream = client.chat.completions.create(messages=messages, stream=True, **options)
        assert "".join(piece.choices[0].delta.content or "" for piece in stream) == expect(messages)
        messages += [lf.say("assistant", expect(messages)), lf.say("user", lf.MARKS[7] * 3)]

    for streamed in (False, True):
        with pytest.raises(openai.BadRequestError, match="Unknown semantic type 'TASK'"):
            client.chat.completions.create(messages=talk(lf, "user", m0="TASK"), stream=streamed, **options)
    with pytest.raises(openai.APIError, match="the last one is a reply"):  # said after the stream has begun
        list(client.chat.completions.create(messages=talk(lf, "user", "assistant"), stream=True, **options))


# -- what is wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", ["TASK", "", 3, -1, True, ["NOISE"], {"type": "NOISE"}, 0.5])
def test_an_unknown_type(server, lf, kind, streamed):
    response = server.post(talk(lf, "user", "assistant", "user", m2=kind), stream=streamed)
    assert response.status_code == 400
    detail = response.json()["detail"]
    assert detail.startswith(f"messages[2].semantic_type: Unknown semantic type {kind!r}. Allowed: GLOBAL, ")


def test_types_of_parts_are_refused(server, expect, lf):
    part = {"type": "text", "text": lf.MARKS[0] * 4}
    assert server.answer([{"role": "user", "content": [part]}]) == expect(talk(lf, "user"))
    response = server.post([{"role": "user", "content": [{**part, "semantic_type": "NOISE"}]}])
    assert response.status_code == 400 and "a part cannot have a semantic_type here" in response.text
    response = server.post([{"role": "user", "content": "x", "Semantic_Type": "NOISE"}])
    assert response.status_code == 400 and "messages[0].Semantic_Type: there is no such key" in response.text


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"model": "tiny"}', b'{"model": "tiny", "messages": "hello"}', b"\xff\xfe"]
)
def test_bad_json(server, body):
    response = server.client.post("/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)


@pytest.mark.parametrize(
    "messages, status",
    [
        ([], 400),
        ([{"role": "user", "content": None}], 400),
        ([{"role": "user"}], 400),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], 400),
        ([{"role": "assistant", "content": "a"}], 400),
        ([{"role": "judge", "content": "a"}], 422),
        ([{"content": "a"}], 422),
        ([{"role": "user", "content": 5}], 422),
    ],
)
def test_bad_messages(server, messages, status):
    assert server.post(messages).status_code == status


def test_a_stream_that_cannot_begin_says_why(server):
    for messages, problem in (([], "there is no message to answer"), ([{"role": "user"}], "content must be a text")):
        (*_, last) = server.events(messages)
        assert problem in last["error"]["message"]


def test_more_tokens_than_the_model_has_positions(server, lf):
    too_long = [lf.say("user", lf.MARKS[0] * 40_000)]
    response = server.post(too_long)
    assert response.status_code == 400 and "32768" in response.text
    assert "32768" in server.events(too_long)[-1]["error"]["message"]


# -- clients that leave ----------------------------------------------------------------------------------------


def test_what_they_leave_would_go_on(server, lf):
    response = server.post(talk(lf, "user"), max_tokens=500)
    assert response.json()["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("pieces", [0, 3])
def test_a_client_that_leaves_a_stream(server, lf, pieces):
    body = {"model": "tiny", "messages": talk(lf, "user"), "stream": True, **ENDLESS}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        with client.stream("POST", "/chat/completions", json=body) as response:
            lines = response.iter_lines()
            for _ in range(pieces):
                next(lines)


def test_clients_that_leave_while_they_wait(server, lf):
    """Half of the clients go away before it is their turn; the others are answered."""
    body = {"model": "tiny", "messages": talk(lf, "user"), "stream": True, **ENDLESS}
    raw = json.dumps(body).encode()
    host, port = server.url.split("//")[1].split("/")[0].split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    leavers = []
    for _ in range(4):
        leaver = socket.create_connection((host, int(port)))
        leaver.sendall((head + f"Content-Length: {len(raw)}\r\n\r\n").encode() + raw)
        leavers.append(leaver)
    answers = []
    waiting = [
        threading.Thread(target=lambda: answers.append(server.answer(talk(lf, "user", m0="NOISE")))) for _ in range(3)
    ]
    for thread in waiting:
        thread.start()
    for leaver in leavers:
        leaver.close()
    for thread in waiting:
        thread.join(timeout=180)
    assert len(answers) == 3 and len(set(answers)) == 1


def test_a_request_cut_short(server):
    host, port = server.url.split("//")[1].split("/")[0].split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")


def test_no_request_failed_inside(server):
    """Nothing that clients did was an error of the server's."""
    assert "Exception in ASGI application" not in server.log.read_text("utf-8")


# -- a model without HSA ---------------------------------------------------------------------------------------


def test_types_are_not_ignored_by_a_model_without_hsa(lf, checkpoint):
    from fastapi.testclient import TestClient
    from llamafactory.api.app import create_app

    plain = ChatModel({"model_name_or_path": str(lf.model_dir("qwen3")), **OPTIONS, "do_sample": False})
    with integrate("saved"), TestClient(create_app(plain)) as client:
        body = {"model": "tiny", "messages": talk(lf, "user"), "max_tokens": NEW}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        body["messages"] = talk(lf, "user", m0="NOISE")
        response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400 and "this server's model has no HSA" in response.json()["detail"]
