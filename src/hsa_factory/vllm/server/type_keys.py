"""What each route of vLLM's server reads of HSA; what else a client says of it is refused."""

from typing import Any

from ...request_keys import CHAT, Reads, unread_key
from ..types import InvalidTypes


TOKENS = "/inference/v1/generate"

_XARGS = ("vllm_xargs",)
_ROUTES = {
    CHAT: Reads(messages=True, parts=True, fields=_XARGS),
    "/v1/completions": Reads(fields=_XARGS),
    "/v1/messages": Reads(fields=_XARGS),
    "/v1/responses": Reads(fields=_XARGS),
    "/invocations": Reads(fields=_XARGS),
    "/v1/chat/completions/batch": Reads(fields=_XARGS),
    "/v1/chat/completions/render": Reads(fields=_XARGS),
    "/v1/completions/render": Reads(fields=_XARGS),
    "/v1/messages/render": Reads(fields=_XARGS),
    TOKENS: Reads(fields=("sampling_params", "extra_args")),
    "/tokenize": Reads(messages=True, parts=True),  # a type changes no token
}


def reads_of(route: str) -> Reads:
    """Return what a route reads of HSA; one that is not known here reads nothing."""
    return _ROUTES.get(route, Reads())


def check_keys(route: str, body: Any) -> None:
    """Refuse keys of HSA that a route does not read, and those that are misspelt.

    Args:
        route: Its path.
        body: Of the request, as JSON.

    Raises:
        InvalidTypes: It names the key, and says where it belongs.
    """
    if reason := unread_key(route, reads_of(route), body):
        raise InvalidTypes(reason)
