"""What stands before every route of the server: keys of HSA that a route would ignore are refused."""

import json
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMValidationError

from ..types import InvalidTypes
from .given_types import read_given
from .type_keys import check_keys, holds_keys, reads_of


class KeyGuard:
    """Reads the body of each POST before its route does, and answers 400 where it says something of HSA that is not read.

    Args:
        app: What comes after it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the route do it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        messages = await _read(receive)
        body = _json_of(messages)
        state = scope["app"].state
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        reason = _reason(path, body, bool(getattr(state, "has_hsa", False)))
        if reason is not None:
            error = create_error_response(VLLMValidationError(reason))
            await JSONResponse(error.model_dump(), error.error.code)(scope, receive, send)
            return
        await self._app(scope, _again(messages, receive), send)


def _reason(path: str, body: Any, has_hsa: bool) -> str | None:
    """Return why a request is refused; None: it is not."""
    if not has_hsa:
        key = holds_keys(body)
        return None if key is None else f"{key}: this server's model has no HSA. Send requests without it."
    try:
        check_keys(path, body)
        if reads_of(path).messages:
            read_given(body)
    except InvalidTypes as error:
        return str(error)
    return None


async def _read(receive: Receive) -> list[Message]:
    messages = []
    while True:
        messages.append(await receive())
        if messages[-1]["type"] != "http.request" or not messages[-1].get("more_body", False):
            return messages


def _json_of(messages: list[Message]) -> Any:
    """Return the body as JSON; None: it is none, which the route will say."""
    try:
        return json.loads(b"".join(message.get("body", b"") for message in messages))
    except (ValueError, RecursionError):
        return None


def _again(messages: list[Message], receive: Receive) -> Receive:
    """Return what gives the route the messages that were read, and then those that come."""
    waiting = iter(messages)

    async def next_message() -> Message:
        message = next(waiting, None)
        return await receive() if message is None else message

    return next_message
