"""Three hundred clients at once, half of which vanish: nothing is left of them, and the others are answered."""

import asyncio
import time

import pytest
from servers import Server, stream
from serving_checkpoints import save_checkpoint

from hsa_factory import HSAConfig


CLIENTS = 300
ROUNDS = 4
GROWTH = 30  # MiB after the first round, of the server and the scheduler
OF_WORKER = 80  # MiB in the last round; without HSA vLLM's worker takes 400 in ten rounds, less each time


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_tokenizer):
    directory = tmp_path_factory.mktemp("loaded")
    save_checkpoint(directory, tiny_tokenizer, "qwen3", HSAConfig(noise_window=20, default_type="NOISE"))
    options = ("--max-model-len", "4096", "--num-gpu-blocks-override", "150")
    with Server(directory, tmp_path_factory.mktemp("log") / "log", *options) as server:
        yield server


def body(client):
    """A conversation of a client's own, so that prefixes are not shared; 150 blocks are too few for all of them."""
    text = f"client {client} takes the red apple out of the fridge. " * (2 + client % 5)
    messages = [{"role": "user", "content": text, "semantic_type": ("GLOBAL", "LANDMARK", "NOISE")[client % 3]}]
    return {"messages": messages, "max_tokens": 12, "ignore_eos": True}


async def all_at_once(port, number):
    """Return which of the clients that stay were answered; every second one vanishes, at once or within the answer."""
    clients = [stream(port, body(n), None if n % 2 else n // 2 % 6) for n in range(number)]
    return [done for n, done in enumerate(await asyncio.gather(*clients)) if n % 2]


def wait_until_idle(server, seconds=120):
    end = time.monotonic() + seconds
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    while any(server.gauge(name) for name in names):
        assert time.monotonic() < end, "requests of clients that vanished go on"
        time.sleep(0.5)


def test_clients_that_vanish_leave_nothing(server):
    memory = []
    for _ in range(ROUNDS):
        assert asyncio.run(all_at_once(server.port, CLIENTS)) == [True] * (CLIENTS // 2)
        wait_until_idle(server)
        ids, answer = server.chat(body(1)["messages"], 4)  # after which the gauges are of an idle engine
        assert len(answer) == 4
        memory.append(server.memory())
        assert server.gauge("hsa_factory:kv_blocks_held") == 0
        assert server.gauge("vllm:kv_cache_usage_perc") == 0
    workers, others = zip(*memory)
    assert others[-1] - others[0] < GROWTH, memory
    assert workers[-1] - workers[-2] < OF_WORKER, memory
    assert "Traceback" not in server.said()


def test_what_does_not_fit_the_cache_is_told_why(server):
    """Clients try again what is answered with 500."""
    for length, number, reason in (
        (3000, 2, "The prompt needs 188 blocks of 16 tokens at once, but the KV cache has 149."),
        (2370, 40, "what was answered so far need more than the 149 blocks of 16 tokens"),
    ):
        body = {"prompt": [5] * length, "max_tokens": number, "ignore_eos": True}
        body["vllm_xargs"] = {"hsa_types": "0" * length}
        status, answer = server.post("/v1/completions", body)
        assert status == 400 and reason in answer["error"]["message"]
        assert reason in server.post("/v1/completions", {**body, "stream": True})[1]
    assert server.chat([{"role": "user", "content": "hello"}], 2)
