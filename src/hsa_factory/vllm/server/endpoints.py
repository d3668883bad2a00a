"""What vLLM calls for its HTTP server, by the entry point ``vllm.endpoint_plugins``: chat requests may hold types."""

from argparse import Namespace
from typing import Any

from fastapi import Depends, FastAPI, Request
from pydantic import PrivateAttr, model_validator
from starlette.datastructures import State
from starlette.middleware import Middleware
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.chat_completion import api_router
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.logger import init_logger

from ...request_keys import CHAT
from ..adapters import check_adapter
from ..serving_config import load_tokenizer, serving_config
from .admission import Admission
from .chat_prompt import ChatTyper
from .given_types import GivenTypes, read_given
from .guard import KeyGuard
from .metrics import BlockGauges
from .reasons import EngineWithReasons
from .renderer import TypedRenderer, refusals


logger = init_logger(f"vllm.{__name__}")  # vLLM shows what is said below its own name

_TYPED = (
    "openai_serving_chat",
    "openai_serving_chat_batch",
    "openai_serving_completion",
    "openai_serving_responses",
    "anthropic_serving_messages",
    "cohere_serving_chat_v2",
    "serving_render",
    "serving_tokens",
)  # of vLLM's handlers, those that make prompts


class TypedChatRequest(ChatCompletionRequest):
    """A chat request that remembers the types in its messages and parts."""

    _given: list[GivenTypes] = PrivateAttr(default_factory=list)

    @property
    def given_types(self) -> list[GivenTypes]:
        """One for each message."""
        return self._given

    @model_validator(mode="wrap")
    @classmethod
    def _read_types(cls, data: Any, handler: Any) -> Any:
        with refusals():
            given = read_given(data)
        request = handler(data)
        request._given = given
        return request


class HSAEndpoints:
    """The plugin of the HTTP server. Models without HSA are served as before; types sent to them are refused."""

    name = "hsa_factory"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Let chat requests be read with their types, and let nothing that a client says of HSA be ignored."""
        app.add_api_route(
            CHAT, create_chat_completion, methods=["POST"], dependencies=[Depends(validate_json_request)]
        )
        app.user_middleware.append(Middleware(KeyGuard))  # within all others: keys of the API come first

    async def init_state(self, engine_client: EngineClient | None, state: State, args: Namespace) -> None:
        """Let prompts be typed, and gauges be shown, where the model has HSA."""
        config = None if engine_client is None else serving_config(engine_client.vllm_config)
        state.hsa_config = config
        if engine_client is None:
            return
        for adapter in state.openai_serving_models.lora_requests.values():
            check_adapter(adapter, config)
        if config is None:
            return
        Admission.needs_types = True
        tokenizer = load_tokenizer(engine_client.vllm_config.model_config)
        adapters = state.openai_serving_models.lora_requests
        typed = TypedRenderer(state.online_renderer, ChatTyper(tokenizer, config), config, adapters)
        state.hsa_renderer = typed
        for name in _TYPED:
            handler = getattr(state, name, None)
            if handler is not None:
                handler.online_renderer = typed
                handler.engine_client = EngineWithReasons(engine_client)
        loggers = getattr(engine_client, "logger_manager", None)
        if loggers is not None:
            loggers.stat_loggers.insert(0, BlockGauges())
        logger.info("HSA: %s reads semantic_type of messages and of their parts.", CHAT)


async def create_chat_completion(request: TypedChatRequest, raw_request: Request) -> Any:
    """Answer a chat request as vLLM does, with types."""
    return await api_router.create_chat_completion(request, raw_request)
