"""What stands before every route of the server: keys of HSA that a route would ignore are refused."""

import json
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest

from ...config import HSAConfig
from ...request_keys import without_hsa
from ..adapters import check_adapter
from ..types import InvalidTypes
from .given_types import read_given
from .renderer import refusals
from .type_keys import TOKENS, check_keys, reads_of


_SHORT = 2**16  # bytes of a body; a longer one is looked at in a thread, while the server answers others
_DEPTH = 100  # of lists and objects within each other, as `hsa-factory api` takes them
_LOADS = {"/v1/load_lora_adapter": ("lora_name", "lora_path"), "/adapters": ("name", "src")}


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
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            if sum(len(message.get("body", b"")) for message in messages) > _SHORT:
                await run_in_threadpool(_check_body, path, messages, scope["app"].state)
            else:
                _check_body(path, messages, scope["app"].state)
        except VLLMValidationError as error:
            answer = create_error_response(error)
            await JSONResponse(answer.model_dump(), answer.error.code)(scope, receive, send)
            return
        await self._app(scope, _again(messages, receive), send)


def _check_body(path: str, messages: list[Message], state: State) -> None:
    """Check a body.

    Raises:
        VLLMValidationError: If it says something of HSA that is not read.
    """
    config = getattr(state, "hsa_config", None)
    with refusals():
        body = _json_of(messages, config is not None)
        _check(path, body, config)
    if path == TOKENS and (renderer := getattr(state, "hsa_renderer", None)) is not None:
        renderer.check_tokens(body)


def _check(path: str, body: Any, config: HSAConfig | None) -> None:
    """Refuse what a route would ignore.

    Raises:
        InvalidTypes: With the reason.
    """
    if path in _LOADS and isinstance(body, dict):
        name, directory = (body.get(key) for key in _LOADS[path])
        if isinstance(name, str) and isinstance(directory, str) and directory:
            check_adapter(LoRARequest(name, 1, directory), config)
    if config is None:
        if reason := without_hsa(body):
            raise InvalidTypes(reason)
        return
    check_keys(path, body)
    if reads_of(path).messages:
        read_given(body)


async def _read(receive: Receive) -> list[Message]:
    messages = []
    while True:
        messages.append(await receive())
        if messages[-1]["type"] != "http.request" or not messages[-1].get("more_body", False):
            return messages


def _json_of(messages: list[Message], is_ours: bool) -> Any:
    """Return the body as JSON; None: it is none, which the route will say.

    Args:
        messages: That bring it.
        is_ours: Whether the model has HSA; others are served as without our plugin.

    Raises:
        InvalidTypes: If it is nested so deeply that the route could not read it, and would not say so.
    """
    try:
        body = json.loads(b"".join(message.get("body", b"") for message in messages))
        is_deep = is_ours and _is_deep(body)
    except ValueError:
        return None
    except RecursionError:
        body, is_deep = None, is_ours
    if is_deep:
        raise InvalidTypes(f"The body is nested more than {_DEPTH} levels deep.")
    return body


def _is_deep(body: Any) -> bool:
    """Whether more than `_DEPTH` lists and objects stand within each other."""
    level: list[Any] = [[body]]
    for _ in range(_DEPTH + 1):
        insides = [value.values() if isinstance(value, dict) else value for value in level]
        level = [inner for values in insides for inner in values if isinstance(inner, (dict, list))]
        if not level:
            return False
    return True


def _again(messages: list[Message], receive: Receive) -> Receive:
    """Return what gives the route the messages that were read, and then those that come."""
    waiting = iter(messages)

    async def next_message() -> Message:
        message = next(waiting, None)
        return await receive() if message is None else message

    return next_message
