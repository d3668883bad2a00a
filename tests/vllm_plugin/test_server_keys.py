"""Whatever a client says of types, on any route: it is read, or answered with 400 and the way."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.middleware.gzip import GZipMiddleware
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from hsa_factory import HSAConfig
from hsa_factory.vllm.server.endpoints import HSAEndpoints
from hsa_factory.vllm.server.type_keys import check_keys
from hsa_factory.vllm.types import InvalidTypes


# Every POST route of vLLM's server that may lead to tokens. One that is new must be looked at: does it render prompts by our
# renderer, does it lose types, which fields does it read? Then it belongs here, or to those that make none.
MAKES_TOKENS = {
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/chat/completions/render",
    "/v1/completions",
    "/v1/completions/render",
    "/v1/messages",
    "/v1/messages/render",
    "/v1/responses",
    "/v1/responses/render",
    "/v1/systemone",
    "/generative_scoring",
    "/inference/v1/generate",
    "/invocations",
}
MAKES_NONE = {
    "/tokenize",
    "/detokenize",
    "/v1/messages/count_tokens",
    "/v1/chat/completions/derender",
    "/v1/completions/derender",
    "/v1/responses/{response_id}/cancel",
    "/inference/v1/abort_requests",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/adapters",
    "/ping",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/reset_encoder_cache",
    "/collective_rpc",
    "/sleep",
    "/release_kv_cache_memory",
    "/wake_up",
    "/pause",
    "/resume",
    "/abort_requests",
    "/init_weight_transfer_engine",
    "/shutdown_weight_transfer_engine",
    "/start_weight_update",
    "/start_draft_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/update_weight_version",
    "/weight_checker",
    "/scale_elastic_ep",
    "/is_scaling_elastic_ep",
    "/fault_tolerance/apply",
}
CHAT, COHERE = "/v1/chat/completions", "/cohere/v2/chat"  # the latter is there only with Cohere's package


@pytest.fixture(scope="module")
def app():
    """The whole server with every switch on, without an engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        patch.setattr("vllm.plugins.load_endpoint_plugins", lambda tasks: [HSAEndpoints()])
        parser = make_arg_parser(FlexibleArgumentParser())
        options = ["--enable-scale-out", "--enable-fault-tolerance", "--api-key", "secret"]
        args = parser.parse_args(options[:1] + options[2:])
        args.enable_fault_tolerance = True  # which asks for more, when it is parsed
        app = build_app(args, ("generate", "render"))
    app.add_api_route(COHERE, lambda: "ignored", methods=["POST"])
    app.state.hsa_config = HSAConfig()
    return app


@pytest.fixture(scope="module")
def post(app):
    client = TestClient(app, raise_server_exceptions=False)

    def post(path, body, **headers):
        answer = client.post(path, json=body, headers={"Authorization": "Bearer secret", **headers})
        return answer.status_code, answer.text

    return post


def test_every_route_is_known(app):
    routes = {route.path for route in app.routes if "POST" in (getattr(route, "methods", None) or ())}
    assert routes - {COHERE} == MAKES_TOKENS | MAKES_NONE


def user(**more):
    return {"role": "user", "content": "x", **more}


@pytest.mark.parametrize("path", sorted({*MAKES_TOKENS, *MAKES_NONE, COHERE} - {CHAT, "/tokenize"}))
def test_types_of_messages_are_read_by_chat_completions_only(post, path):
    for body in (
        {"messages": [user(semantic_type="NOISE")]},
        {"messages": [user(content=[{"type": "text", "text": "x", "semantic_type": 2}])]},
        {"input": [user(semantic_type="NOISE")]},
        {"prompt": "x", "semantic_type": 2},
    ):
        status, answer = post(path.replace("{response_id}", "1"), body)
        assert status == 400 and "semantic_type" in answer and f"to {CHAT}." in answer


MISSPELT = (
    "semantic_tag",
    "Semantic_Type",
    "semanticType",
    "semantic-type",
    "SEMANTIC_TYPE",
    "semantic_types",
    "semantictype",
)
MISSPELT += ("semantic_tpye", "semanitc_type", "semantic type", "semantic_type ")


@pytest.mark.parametrize("key", MISSPELT)
def test_keys_that_all_but_are_ours(post, key):
    for body in (
        {"messages": [user(), user(**{key: "NOISE"})]},
        {"messages": [user(content=[{"type": "text", "text": "x", key: 2}])]},
        {"messages": [user()], key: "NOISE"},
        {"messages": [user()], "vllm_xargs": {key: "01"}},
    ):
        status, answer = post(CHAT, body)
        assert status == 400 and "semantic_type" in answer, body
        assert post(COHERE, body)[0] == 400 and post("/tokenize", body)[0] == 400


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"messages": [user(semantic_tag=1)]}, "messages[0].semantic_tag is not read here. Give each message"),
        (
            {"messages": [user(semanticType=1)]},
            "messages[0].semanticType: there is no such key. Did you mean 'semantic_type'?",
        ),
        ({"messages": [user(semantic_spans=[])]}, "messages[0].semantic_spans is not read here. Give each message"),
        ({"messages": [user(hsa_types="0")]}, 'Send it within "vllm_xargs": {"hsa_types": …}.'),
        (
            {"messages": [user()], "hsa_turns": "0*1"},
            'hsa_turns is not read here. Send it within "vllm_xargs": {"hsa_turns"',
        ),
        ({"messages": [user()], "hsaTypes": "0"}, 'Send it within "vllm_xargs": {"hsa_types": …}.'),
        (
            {"messages": [user()], "extra_body": {"hsa_types": "0"}},
            "extra_body.hsa_types is not read here. Send it within",
        ),
        (
            {"messages": [user()], "extra_body": {"semantic_type": 1}},
            "extra_body.semantic_type is not read here. Give each",
        ),
        (
            {"messages": [user()], "chat_template_kwargs": {"semantic_type": 1}},
            "chat_template_kwargs.semantic_type is not",
        ),
        ({"messages": [user()], "semantic_ids": [0]}, "semantic_ids is not read here. Give each message"),
        (
            {"messages": [user()], "vllm_xargs": {"semantic_type": 1}},
            "vllm_xargs.semantic_type is not read here. Give each",
        ),
        ({"messages": [user()], "vllm_xargs": {"HSA_types": "0"}}, "HSA_types is no field of HSA. Allowed: hsa_types"),
        ({"messages": [user()], "vllm_xargs": {"hsa_tuns": "0"}}, "Did you mean 'hsa_turns'?"),
        ({"messages": [user()], "vllm_xargs": {"hsa_other": "0"}}, "hsa_other is no field of HSA. Allowed: hsa_types"),
        (
            {"messages": [user(tool_calls=[{"function": {"name": "f", "semantic_type": 1}}])]},
            "tool_calls[0].function.semantic",
        ),
        (
            {"messages": [user(content=[{"type": "x", "content": [{"semantic_type": 1}]}])]},
            "content[0].content[0].semantic",
        ),
        ({"messages": [user(semantic_type="LOUD")]}, "messages[0].semantic_type: Unknown semantic type 'LOUD'"),
    ],
)
def test_what_stands_in_the_wrong_place_is_told_its_place(post, body, reason):
    status, answer = post(CHAT, body)
    assert status == 400 and reason.replace('"', '\\"') in answer
    assert post("/tokenize", body)[0] == 400


def test_tokens_go_in_with_their_types_in_the_sampling_parameters(post):
    path = "/inference/v1/generate"
    check_keys(path, {"token_ids": [1], "sampling_params": {"extra_args": {"hsa_types": "0"}}})
    status, answer = post(path, {"token_ids": [1], "sampling_params": {}, "vllm_xargs": {"hsa_types": "0"}})
    assert status == 400 and 'within \\"sampling_params\\": {\\"extra_args\\": {\\"hsa_types\\": …}}' in answer


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [user(semantic_type="noise"), user(content=[{"type": "text", "text": "x", "semantic_type": 2}])]},
        {"messages": [user(semantic_type=None)], "hsa_types": None, "vllm_xargs": {"hsa_types": "0", "other": 1}},
        {"messages": [user()], "tools": [{"function": {"parameters": {"properties": {"semantic_type": {}}}}}]},
        {"messages": [user(tool_calls=[{"function": {"name": "f", "arguments": {"semantic_type": 1}}}])]},
        {"messages": [user(content=[{"type": "tool_use", "input": {"semantic_type": 1}}])]},
        {"messages": [user(type="x", semantics=1, spans=[], types="y", roles=1, has_type=0)]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": {"semanticType": {}}}}}},
        [],
        None,
        "semantic_type",
    ],
)
def test_what_is_read_or_the_clients_own_passes(body):
    check_keys(CHAT, body)


def test_the_body_reaches_the_route_as_it_was(post):
    status, answer = post("/v1/chat/completions/derender", {"nothing": 1})
    assert status == 400 and "semantic" not in answer and "missing" in answer.lower()
    assert post(COHERE, {"messages": [user()]}) == (200, '"ignored"')


def test_a_key_of_the_api_comes_first(post):
    assert post(CHAT, {"semantic_type": 1}, Authorization="Bearer wrong")[0] == 401


def test_a_server_below_a_path(post, app):
    app.root_path, former = "/below", app.root_path
    try:
        assert f"to {CHAT}" in post("/below/v1/completions", {"prompt": "x", "semantic_type": 1})[1]
    finally:
        app.root_path = former


def test_the_guard_stands_within_what_answers_in_another_form():
    """Cohere's middleware translates what goes wrong within it."""
    app = FastAPI()
    app.add_middleware(GZipMiddleware)
    HSAEndpoints().attach_router(app)
    assert [middleware.cls.__name__ for middleware in app.user_middleware] == ["GZipMiddleware", "KeyGuard"]


def test_a_model_without_hsa(post, app):
    app.state.hsa_config = None
    try:
        for path in (CHAT, "/v1/messages", "/v1/completions", COHERE):
            status, answer = post(path, {"messages": [user(semantic_type="NOISE")]})
            assert status == 400 and "messages[0].semantic_type: this server's model has no HSA" in answer
        assert "has no HSA" in post("/v1/completions", {"prompt": "x", "vllm_xargs": {"hsa_types": "0"}})[1]
        assert "has no HSA" not in post(CHAT, {"messages": [user(semantic_tag="theirs")]})[1]
    finally:
        app.state.hsa_config = HSAConfig()


@pytest.mark.parametrize("levels", [99, 101, 990, 100_000])
def test_bodies_that_are_nested_too_deeply(app, levels):
    """The route would break on them, at levels that depend on where it stands; a model without HSA is served as before."""
    client = TestClient(app, raise_server_exceptions=False)
    head = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    text = '{"x":' + "[" * levels + "]" * levels + "}"
    answer = client.post("/invocations", content=text, headers=head)
    assert (answer.status_code == 400 and "nested more than 100 levels" in answer.text) == (levels > 99)
    app.state.hsa_config = None
    try:
        assert "levels" not in client.post("/tokenize", content=text, headers=head).text
    finally:
        app.state.hsa_config = HSAConfig()


def test_half_a_character_in_a_key_is_said_in_other_signs(app):
    head = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    for body in ('{"vllm_xargs":{"hsa_\\ud800":1}}', '{"hsa_\\ud800":1}', '{"semantic_\\ud800type":1}'):
        answer = TestClient(app, raise_server_exceptions=False).post("/v1/completions", content=body, headers=head)
        assert answer.status_code == 400 and "\\ud800" in answer.json()["error"]["message"]


def test_a_name_is_cut_in_what_is_said():
    with pytest.raises(InvalidTypes) as refused:
        check_keys(CHAT, {"semantic_type" + " " * 1000: 1})
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/adapters"])
def test_an_adapter_with_rules_of_its_own_is_not_loaded(post, app, tmp_path, path):
    body = {"lora_name": "a", "lora_path": str(tmp_path), "name": "a", "src": str(tmp_path)}
    assert "other rules" not in post(path, body)[1]  # what its directory lacks now may be there the next time
    HSAConfig(noise_window=51).save_pretrained(tmp_path)
    assert "noise_window = 51, not 50" in post(path, body)[1]
    HSAConfig(noise_window=7).save_pretrained(tmp_path)
    status, answer = post(path, body)
    assert (
        status == 400
        and "LoRA adapter a: was trained with other rules" in answer
        and "noise_window = 7, not 50" in answer
    )
    app.state.hsa_config = None
    try:
        status, answer = post(path, body)
        assert status == 400 and "this server's model has no HSA. Merge it" in answer
    finally:
        app.state.hsa_config = HSAConfig()
