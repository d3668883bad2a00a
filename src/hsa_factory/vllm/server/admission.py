"""Whether requests must say their types: in a server they must, so that none is answered by another model unnoticed."""

from collections.abc import Mapping
from typing import Any

from ...request_keys import TYPES
from ..types import InvalidTypes


class Admission:
    """What the process that takes requests in asks of them.

    Attributes:
        needs_types: Whether a request without types is refused.
    """

    needs_types = False


def check_admission(fields: Mapping[str, Any]) -> None:
    """Refuse a request of a server that has no types.

    Args:
        fields: Its `extra_args`.

    Raises:
        InvalidTypes: It says which ways there are.
    """
    if Admission.needs_types and TYPES not in fields:
        raise InvalidTypes(
            f"This model has HSA, and the tokens of this request have no types. /v1/chat/completions, /v1/messages and "
            f"/v1/completions read or find them where the server was started with `hsa-factory serve`, or with "
            f"VLLM_PLUGINS=hsa_factory; elsewhere send {TYPES} in vllm_xargs (one digit a token of the prompt, or 'default')."
        )
