"""The server around LLaMA-Factory's: how much it reads, which pages may call it, and errors that clients can show."""

import os
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from llamafactory.extras import logging
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .request import max_characters, read_limit


MAX_BODY = "API_MAX_BODY_MB"
"""Environment variable: how many MiB a request may have, media in base64 included."""
CORS_ORIGINS = "API_CORS_ORIGINS"
"""Environment variable: web pages that may call the server, separated by commas; `*` is any, without credentials."""

_BODY_MB = 32
_DRAINED = 16  # times the limit: what is read and thrown away, so that a client that is still sending hears the answer
_LISTED_ERRORS = 20
_LOCAL = ("127.0.0.1", "localhost", "::1")

logger = logging.get_logger(__name__)


class BodyLimit:
    """ASGI middleware that answers 413 to a body that is too large, without keeping it.

    Args:
        app: What it stands in front of.
        limit: Bytes.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        announced = int(declared) if declared.isdigit() else 0
        size = 0

        async def receive_part() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if max(size, announced) <= self.limit:
                return message
            while message.get("more_body") and size <= _DRAINED * self.limit:
                message = await receive()
                size += len(message.get("body", b""))
            raise HTTPException(
                413,
                detail=f"The request has more than {self.limit:,} bytes. Send less, or start the server with a larger "
                f"{MAX_BODY}.",
            )

        await self.app(scope, receive_part, send)


def harden(app: FastAPI) -> FastAPI:
    """Set up LLaMA-Factory's app: limits, cross-origin requests, and errors in the form that OpenAI's clients show.

    Raises:
        ValueError: If an environment variable is not valid; names it.
    """
    max_characters()
    app.user_middleware = [item for item in app.user_middleware if item.cls is not CORSMiddleware]
    app.add_middleware(BodyLimit, limit=read_limit(MAX_BODY, _BODY_MB) * 2**20)
    origins = [origin.strip() for origin in os.environ.get(CORS_ORIGINS, "").split(",") if origin.strip()]
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_credentials="*" not in origins,
            allow_methods=["*"],
            allow_headers=["*"],
        )
    app.add_exception_handler(StarletteHTTPException, _answer_error)  # of which FastAPI's is one
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    if os.environ.get("API_HOST", _LOCAL[0]) not in _LOCAL and not os.environ.get("API_KEY"):
        logger.warning_rank0("API_HOST lets other machines in, and API_KEY is not set: whoever reaches them may ask.")
    return app


def error_body(message: Any, error: Exception) -> dict[str, Any]:
    """Return an error as OpenAI's clients know it."""
    return {"error": {"message": message, "type": type(error).__name__}}


async def _answer_error(request: Any, error: Any) -> JSONResponse:
    body = {"detail": error.detail, **error_body(error.detail, error)}
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _answer_invalid(request: Any, error: Any) -> JSONResponse:
    """Say which fields are wrong, without the values: they may be large, and no JSON."""
    problems = [{key: item[key] for key in ("type", "loc", "msg")} for item in error.errors()[:_LISTED_ERRORS]]
    message = "; ".join(f"{_place(item)}: {item['msg']}" for item in problems)
    return JSONResponse({"detail": problems, **error_body(message, error)}, status_code=422)


def _place(problem: Mapping[str, Any]) -> str:
    return ".".join(str(key) for key in problem["loc"] if key != "body") or "body"
