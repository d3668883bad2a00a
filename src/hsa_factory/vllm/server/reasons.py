"""Why the engine ended a request with an error, for the client: vLLM's handlers say "Internal server error" of each."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from vllm.exceptions import VLLMValidationError


class EngineWithReasons:
    """vLLM's engine, whose answers end with the reason that the scheduler gave, where it gave one.

    Args:
        engine: vLLM's client of it.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Yield vLLM's outputs of a request.

        Raises:
            VLLMValidationError: If it ended with an error; it says which, and is answered with 400.
        """
        async with aclosing(self._engine.generate(*args, **kwargs)) as outputs:
            async for output in outputs:
                for choice in output.outputs:
                    if choice.finish_reason == "error" and isinstance(choice.stop_reason, str):
                        raise VLLMValidationError(choice.stop_reason)
                yield output
