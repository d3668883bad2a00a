"""LLaMA-Factory's OpenAI-style server: `semantic_type` as a field of a message, and errors that reach the client."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import llamafactory.api.app
import llamafactory.api.chat
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from llamafactory.api.protocol import ChatCompletionRequest, ChatMessage, MultimodalInputItem
from llamafactory.chat.hf_engine import HuggingfaceEngine
from llamafactory.extras import logging

from ...models.enable import get_state
from ...semantics import SemanticType
from ...typed.text import TypedText
from ..data.template import TYPE_KEY
from ..seams import Seam


logger = logging.get_logger(__name__)


class TypedInputItem(MultimodalInputItem):
    """A part of a message; its type is only known to be refused."""

    semantic_type: Any = None


class TypedChatMessage(ChatMessage):
    """A message that may have a semantic type; which values are allowed is checked later, to answer with a reason."""

    content: str | list[TypedInputItem] | None = None
    semantic_type: Any = None


class TypedChatCompletionRequest(ChatCompletionRequest):
    """A request with such messages."""

    messages: list[TypedChatMessage]


def api_seams() -> list[Seam]:
    """Return what is replaced in LLaMA-Factory's server."""
    app = llamafactory.api.app
    return [
        Seam(app, "ChatCompletionRequest", TypedChatCompletionRequest, is_call=False),
        Seam(app, "create_app", _create_app),
        Seam(app, "create_chat_completion_response", _answer),
        Seam(app, "create_stream_chat_completion_response", _answer_in_pieces),
        Seam(llamafactory.api.chat, "_process_request", _process_request),
    ]


def read_types(request: Any) -> list[SemanticType | None]:
    """Return the semantic type that each message of a request came with; None where it has none.

    Raises:
        HTTPException: 400, if a type is not valid, or stands at a part of a message.
    """
    types = []
    for number, message in enumerate(request.messages):
        parts = message.content if isinstance(message.content, list) else []
        if any(getattr(part, TYPE_KEY, None) is not None for part in parts):
            raise HTTPException(
                400,
                detail=f"messages[{number}].content: a part cannot have a semantic_type here. Give it to the message, or "
                "type parts by rules (hsa.rules).",
            )
        value = getattr(message, TYPE_KEY, None)
        try:
            types.append(None if value is None else SemanticType.parse(value))
        except ValueError as error:
            raise HTTPException(400, detail=f"messages[{number}].semantic_type: {error}") from None
    return types


def _check_types(request: Any, chat_model: Any) -> None:
    engine = chat_model.engine
    has_hsa = isinstance(engine, HuggingfaceEngine) and get_state(engine.model) is not None
    if any(kind is not None for kind in read_types(request)) and not has_hsa:
        raise HTTPException(400, detail="semantic_type: this server's model has no HSA. Send messages without it.")


def _create_app(original: Any, chat_model: Any) -> Any:
    """Make the server; its errors also have the form that OpenAI's clients show."""
    app = original(chat_model)
    app.add_exception_handler(HTTPException, _error_response)
    return app


async def _error_response(request: Any, error: HTTPException) -> JSONResponse:
    body = {"detail": error.detail, **_error_body(error.detail, error)}
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


def _error_body(message: Any, error: Exception) -> dict[str, Any]:
    return {"error": {"message": message, "type": type(error).__name__}}


async def _answer(original: Any, request: Any, chat_model: Any) -> Any:
    """Answer at once; what is wrong with the request is said to the client instead of an internal error."""
    _check_types(request, chat_model)
    try:
        return await original(request, chat_model)
    except ValueError as error:
        logger.warning_rank0(f"Refused a request: {error}")
        raise HTTPException(400, detail=str(error)) from error


def _answer_in_pieces(original: Any, request: Any, chat_model: Any) -> AsyncGenerator[str, None]:
    """Check the types before the answer begins: after that no status can be sent any more."""
    _check_types(request, chat_model)
    return _with_errors(original(request, chat_model))


async def _with_errors(pieces: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Pass a stream on; if it fails, end it with an error in the form that OpenAI's clients know."""
    try:
        async for piece in pieces:
            yield piece
    except Exception as error:
        detail = error.detail if isinstance(error, HTTPException) else str(error)
        logger.error(f"A stream ended with an error: {detail}")
        yield json.dumps(_error_body(detail, error))
        yield "[DONE]"
    finally:
        await pieces.aclose()


def _process_request(original: Any, request: Any) -> Any:
    """Carry the types from the request to the messages that the engine gets."""
    types = read_types(request)
    messages, system, *rest = original(request)
    before = len(types) - len(messages)  # LLaMA-Factory takes the system message out
    for message, kind in zip(messages, types[before:]):
        if kind is not None:
            message[TYPE_KEY] = int(kind)
    if before and system and types[0] is not None:
        system = TypedText(system, int(types[0]))
    return (messages, system, *rest)
