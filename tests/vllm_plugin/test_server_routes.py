"""The routes that the plugin puts in the place of vLLM's, without an engine: models without HSA are served as before."""

import json
import threading
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving_checkpoints import save_checkpoint
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.anthropic.api_router import attach_router as attach_messages
from vllm.entrypoints.openai.chat_completion.api_router import attach_router as attach_chat
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.plugins.endpoint_plugins.interface import attach_endpoint_plugins
from vllm.v1.metrics.stats import SchedulerStats

from hsa_factory import HSAConfig
from hsa_factory.commands.serve import build_command
from hsa_factory.serving_checkpoint import serving_architecture
from hsa_factory.user_errors import UserError
from hsa_factory.vllm.counts import BlockCounts, put_counts
from hsa_factory.vllm.server import admission, guard
from hsa_factory.vllm.server.endpoints import HSAEndpoints
from hsa_factory.vllm.server.metrics import BlockGauges
from hsa_factory.vllm.serving_config import has_hsa, serving_config
from hsa_factory.vllm.types import InvalidTypes


class Handler:
    """Stands for vLLM's: remembers what reaches it."""

    def __init__(self):
        self.seen = []

    async def answer(self, request, raw_request):
        self.seen.append(request)
        return ErrorResponse(error=ErrorInfo(message="reached", type="Teapot", code=418))

    create_chat_completion = create_messages = answer


@pytest.fixture
def app(monkeypatch):
    monkeypatch.setattr("vllm.plugins.load_endpoint_plugins", lambda tasks: [HSAEndpoints()])
    app = FastAPI()
    app.state.args = SimpleNamespace(log_error_stack=False)
    attach_chat(app)
    attach_messages(app)
    attach_endpoint_plugins(app, ("generate",))
    init_exception_handler(app)
    app.state.openai_serving_chat = app.state.anthropic_serving_messages = app.state.handler = Handler()
    app.state.enable_server_load_tracking = False
    return app


def post(app, path, **message):
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x", **message}]}
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.post(path, json=body)
    return answer.status_code, answer.json()["error"]["message"]


def test_a_model_without_hsa(app):
    assert post(app, "/v1/chat/completions") == (418, "reached")
    status, reason = post(app, "/v1/chat/completions", semantic_type="NOISE")
    assert status == 400 and "this server's model has no HSA" in reason
    assert post(app, "/v1/messages") == (418, "reached")
    assert len(app.state.handler.seen) == 2


def test_a_model_with_hsa(app):
    app.state.hsa_config = HSAConfig()
    assert post(app, "/v1/chat/completions", semantic_type="NOISE") == (418, "reached")
    (request,) = app.state.handler.seen
    assert [types.message for types in request.given_types] == [2]
    status, reason = post(app, "/v1/messages", semantic_type="NOISE")
    assert status == 400 and "to /v1/chat/completions" in reason


def test_long_bodies_are_looked_at_in_a_thread(app, monkeypatch):
    """So that a hundred thousand types hold up nobody else; what is wrong in them is found all the same."""
    app.state.hsa_config = HSAConfig()
    seen, former = [], guard.check_keys
    monkeypatch.setattr(
        guard, "check_keys", lambda *body: (seen.append(threading.current_thread().name), former(*body))[1]
    )
    parts = [{"type": "text", "text": "x", "semantic_type": "NOISE"}] * 2000
    assert post(app, "/v1/chat/completions", content=parts) == (418, "reached")
    assert app.state.handler.seen[0].given_types[0].parts == (2,) * 2000
    assert post(app, "/v1/chat/completions", content=parts[:2]) == (418, "reached")
    assert "worker" in seen[0] and "worker" not in seen[1]
    status, reason = post(app, "/v1/chat/completions", content=[*parts, {"type": "text", "text": "x", "hsa_type": 1}])
    assert status == 400 and "messages[0].content[2000].hsa_type" in reason


@pytest.mark.parametrize("value", [[2] * 100_000, {"a": 1}, "x" * 100_000])
def test_a_type_that_is_no_name_is_not_said_again(app, value):
    app.state.hsa_config = HSAConfig()
    status, reason = post(app, "/v1/chat/completions", semantic_type=value)
    assert status == 400 and "messages[0].semantic_type: must be one name or number" in reason and len(reason) < 200


def test_requests_without_types_are_refused_in_a_server_only(monkeypatch):
    admission.check_admission({})
    monkeypatch.setattr(admission.Admission, "needs_types", True)
    admission.check_admission({"hsa_types": "default"})
    with pytest.raises(InvalidTypes, match="hsa-factory serve"):
        admission.check_admission({})


def test_gauges_show_the_counts_of_all_engines():
    from prometheus_client import REGISTRY

    gauges = BlockGauges()
    assert REGISTRY.get_sample_value("hsa_factory:kv_share_of_plain") == 1
    for engine, counts in enumerate([BlockCounts(1, 4, 7), BlockCounts(2, 4, 3)]):
        stats = SchedulerStats(num_kv_fetch_reqs_by_stage={"theirs": 5})
        put_counts(stats.num_kv_fetch_reqs_by_stage, counts)
        gauges.record(stats, None, engine_idx=engine)
        assert stats.num_kv_fetch_reqs_by_stage == {"theirs": 5}
    gauges.record(None, None)
    gauges.record(SchedulerStats(), None)
    names = ("kv_blocks_held", "kv_blocks_without_hsa", "kv_blocks_freed", "kv_share_of_plain")
    assert [REGISTRY.get_sample_value(f"hsa_factory:{name}") for name in names] == [3, 8, 10, 3 / 8]
    assert BlockGauges() is not gauges  # a second engine in one process shows in the same gauges


def test_a_checkpoint_that_does_not_say_hsa(tmp_path, tiny_tokenizer):
    """It is never served with plain attention; `hsa-factory serve` says the architecture for it."""
    save_checkpoint(tmp_path, tiny_tokenizer)
    path = tmp_path / "config.json"
    path.write_text(path.read_text("utf-8").replace("HSAQwen3", "Qwen3"), "utf-8")
    options = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True}
    with pytest.raises(
        ValueError, match="would serve it without HSA, as another model. Start it with `hsa-factory serve"
    ):
        EngineArgs(str(tmp_path), **options).create_engine_config()
    command = build_command("vllm-cpu", str(tmp_path), [], serving_architecture(tmp_path))
    overrides = json.loads(command[command.index("--hf-overrides") + 1])
    config = EngineArgs(str(tmp_path), hf_overrides=overrides, **options).create_engine_config()
    assert has_hsa(config) and serving_config(config) == HSAConfig()


@pytest.mark.parametrize(
    ("distribution", "option", "complaint"),
    [
        ("vllm", "--headless", "--headless starts engines without a server"),
        ("vllm-cpu", "--headless", "--headless starts engines without a server"),
        ("vllm", "--model=other", "--model would start another model"),
        ("vllm-cpu", "--model_impl=transformers", "--model-impl would start a model without HSA"),
        (
            "vllm-cpu",
            "--api-server-count=2",
            "--api-server-count: vllm-cpu can only be started in a way that ignores it",
        ),
    ],
)
def test_options_that_would_be_ignored_are_refused(tmp_path, distribution, option, complaint):
    with pytest.raises(UserError, match=complaint):
        build_command(distribution, str(tmp_path), [option], "HSAQwen3ForCausalLM")
