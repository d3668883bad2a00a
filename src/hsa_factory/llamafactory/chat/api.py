"""LLaMA-Factory's OpenAI-style server: `semantic_type` as a field of a message, and errors that reach the client."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import llamafactory.api.app
import llamafactory.api.chat
from fastapi import HTTPException
from llamafactory.chat.hf_engine import HuggingfaceEngine
from llamafactory.extras import logging

from ...models.enable import get_state
from ...semantics import SemanticType
from ...typed.text import TypedText
from ..data.template import TYPE_KEY
from ..seams import Seam
from .request import (
    CheckedScoreEvaluationRequest,
    TypedChatCompletionRequest,
    TypedChatMessage,
    TypedInputItem,
    check_request,
    check_turns,
    join_tool_messages,
)
from .server import error_body, harden
from .tool_messages import BESIDE_KEY, REPLIES_KEY


__all__ = ["TypedChatCompletionRequest", "TypedChatMessage", "TypedInputItem", "api_seams", "read_types"]

logger = logging.get_logger(__name__)


def api_seams() -> list[Seam]:
    """Return what is replaced in LLaMA-Factory's server."""
    app = llamafactory.api.app
    return [
        Seam(app, "ChatCompletionRequest", TypedChatCompletionRequest, is_call=False),
        Seam(app, "ScoreEvaluationRequest", CheckedScoreEvaluationRequest, is_call=False),
        Seam(app, "create_app", lambda original, chat_model: harden(original(chat_model))),
        Seam(app, "create_chat_completion_response", _answer),
        Seam(app, "create_stream_chat_completion_response", _answer_in_pieces),
        Seam(app, "create_score_evaluation_response", _score),
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
    if isinstance(request, TypedChatCompletionRequest):
        request.check_keys(has_hsa)


async def _answer(original: Any, request: Any, chat_model: Any) -> Any:
    """Answer at once; what is wrong with the request is said to the client instead of an internal error."""
    _check_request(request, chat_model)
    try:
        await _read(request)
        return await original(request, chat_model)
    except ValueError as error:
        logger.warning_rank0(f"Refused a request: {error}")
        raise HTTPException(400, detail=str(error)) from error


async def _score(original: Any, request: Any, chat_model: Any) -> Any:
    """Score texts; what is wrong with them is said to the client instead of an internal error."""
    try:
        return await original(request, chat_model)
    except ValueError as error:
        logger.warning_rank0(f"Refused a request: {error}")
        raise HTTPException(400, detail=str(error)) from error


def _answer_in_pieces(original: Any, request: Any, chat_model: Any) -> AsyncGenerator[str, None]:
    """Check the request before the answer begins: after that no status can be sent any more."""
    _check_request(request, chat_model)
    return _with_errors(original, request, chat_model)


async def _with_errors(original: Any, request: Any, chat_model: Any) -> AsyncGenerator[str, None]:
    """Answer piece by piece; if that fails, end the stream with an error in the form that OpenAI's clients know."""
    pieces = original(request, chat_model)
    try:
        await _read(request)
        async for piece in pieces:
            yield piece
    except Exception as error:
        detail = error.detail if isinstance(error, HTTPException) else str(error)
        logger.error(f"A stream ended with an error: {detail}")
        yield json.dumps(error_body(detail, error))
        yield "[DONE]"
    finally:
        await pieces.aclose()


def _check_request(request: Any, chat_model: Any) -> None:
    check_request(request)
    _check_types(request, chat_model)


async def _read(request: Any) -> None:
    """Let LLaMA-Factory read a request in a thread: large media and slow hosts hold up no other client.

    Raises:
        HTTPException: 400, if it cannot.
    """
    if not isinstance(request, TypedChatCompletionRequest):  # made by LLaMA-Factory's own class, outside a server
        return
    try:
        request._read = await asyncio.to_thread(llamafactory.api.chat._process_request, request)
    except HTTPException:
        raise
    except Exception as error:
        logger.warning_rank0(f"Refused a request: {error!r}")
        raise HTTPException(400, detail=f"The request cannot be read: {error}") from error


def _process_request(original: Any, request: Any) -> Any:
    """Carry the types from the request to the messages that the engine gets; replies of parallel calls become one."""
    if getattr(request, "_read", None) is not None:
        return request._read
    types = read_types(request)
    joined = join_tool_messages(request.messages)
    check_turns(joined)
    request = request.model_copy(update={"messages": [message for message, _ in joined]})
    messages, system, *rest = original(request)
    before = len(joined) - len(messages)  # LLaMA-Factory takes the system message out
    if before and system and types[0] is not None:
        system = TypedText(system, int(types[0]))
    place = before
    for message, (sent, lengths) in zip(messages, joined[before:]):
        if beside := sent.text_beside():
            message[BESIDE_KEY] = beside
        own = [None if kind is None else int(kind) for kind in types[place : place + len(lengths)]]
        place += len(lengths)
        if len(lengths) > 1:
            message[REPLIES_KEY] = list(zip(lengths, own))
        elif own[0] is not None:
            message[TYPE_KEY] = own[0]
    return (messages, system, *rest)
