"""What vLLM calls for its HTTP server, by the entry point ``vllm.endpoint_plugins``: chat requests may hold types."""

from argparse import Namespace
from typing import Any

from fastapi import Depends, FastAPI, Request
from pydantic import PrivateAttr, model_validator
from starlette.datastructures import State
from transformers import AutoTokenizer
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.anthropic import api_router as anthropic_router
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion import api_router
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger

from ..serving_config import serving_config
from ..types import InvalidTypes
from .admission import Admission
from .chat_prompt import ChatTyper
from .given_types import GivenTypes, read_given
from .metrics import BlockGauges
from .renderer import TypedRenderer, refusals


logger = init_logger(f"vllm.{__name__}")  # vLLM shows what is said below its own name

_PATH = "/v1/chat/completions"
_TYPED = (
    "openai_serving_chat",
    "openai_serving_completion",
    "anthropic_serving_messages",
    "cohere_serving_chat_v2",
)  # of vLLM's handlers, those that render by `render_chat` and `render_completion`


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


class UntypedMessagesRequest(AnthropicMessagesRequest):
    """A request in Anthropic's form: typed by rules and roles; types in it would be lost."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_types(cls, data: Any) -> Any:
        with refusals():
            if any(types != GivenTypes() for types in read_given(data)):
                raise InvalidTypes(
                    f"semantic_type is not read here: rules and roles type these messages. Send it to {_PATH}."
                )
        return data


class HSAEndpoints:
    """The plugin of the HTTP server. Models without HSA are served as before; types sent to them are refused."""

    name = "hsa_factory"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Let chat requests be read with their types."""
        for path, answer in ((_PATH, create_chat_completion), ("/v1/messages", create_messages)):
            app.add_api_route(path, answer, methods=["POST"], dependencies=[Depends(validate_json_request)])

    async def init_state(self, engine_client: EngineClient | None, state: State, args: Namespace) -> None:
        """Let prompts be typed, and gauges be shown, where the model has HSA."""
        config = None if engine_client is None else serving_config(engine_client.vllm_config)
        state.has_hsa = config is not None
        if engine_client is None or config is None:
            return
        Admission.needs_types = True
        model = engine_client.vllm_config.model_config
        tokenizer = AutoTokenizer.from_pretrained(model.tokenizer, revision=model.tokenizer_revision)
        typed = TypedRenderer(state.online_renderer, ChatTyper(tokenizer, config), config)
        for name in _TYPED:
            handler = getattr(state, name, None)
            if handler is not None:
                handler.online_renderer = typed
        loggers = getattr(engine_client, "logger_manager", None)
        if loggers is not None:
            loggers.stat_loggers.insert(0, BlockGauges())
        logger.info("HSA: /v1/chat/completions reads semantic_type of messages and of their parts.")


async def create_chat_completion(request: TypedChatRequest, raw_request: Request) -> Any:
    """Answer a chat request as vLLM does, with types.

    Raises:
        VLLMValidationError: If it has types, and the model has no HSA.
    """
    has_types = any(types != GivenTypes() for types in request.given_types)
    if has_types and not getattr(raw_request.app.state, "has_hsa", False):
        raise VLLMValidationError("semantic_type: this server's model has no HSA. Send messages without it.")
    return await api_router.create_chat_completion(request, raw_request)


async def create_messages(request: UntypedMessagesRequest, raw_request: Request) -> Any:
    """Answer a request in Anthropic's form as vLLM does; its prompt is typed by rules and roles."""
    return await anthropic_router.create_messages(request, raw_request)
