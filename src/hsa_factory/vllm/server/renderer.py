"""What vLLM makes of a request's text, and the types with it: they go on with its sampling parameters."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.renderers.online_renderer import OnlineRenderer

from ...config import HSAConfig
from ...request_keys import FIELDS, TYPES
from ..adapters import check_adapter
from ..pictures import PICTURE, as_sent, refuse_media, sent_with_pictures
from ..types import DEFAULT, InvalidTypes, types_of
from .chat_prompt import ChatTyper
from .given_types import GivenTypes, put_types


_WITHOUT_TYPES = {
    "use_beam_search": "vLLM's beam search sends on prompts without their types",
    "prompt_embeds": "types belong to tokens",
    "kv_transfer_params": "keys of another engine have no types",
}


class TypedRenderer:
    """vLLM's renderer, which renders as before, and puts the types of the prompt to the request.

    Args:
        renderer: vLLM's.
        typer: Types chat prompts; from one thread.
        config: The model's rules.
        adapters: The LoRA adapters that are loaded, by the name that requests call them by; vLLM adds to it.
    """

    def __init__(
        self, renderer: OnlineRenderer, typer: ChatTyper, config: HSAConfig, adapters: Mapping[str, LoRARequest]
    ) -> None:
        self._renderer, self._typer, self._config, self._adapters = renderer, typer, config, adapters
        self._thread = ThreadPoolExecutor(1, "hsa-types")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._renderer, name)

    async def render_chat(self, request: Any, *, skip_mm_cache: bool = False) -> Any:
        """Render a conversation, and type its prompt.

        Raises:
            VLLMValidationError: For types that are wrong, and what cannot be done with types; answered with 400.
        """
        self._refuse(request)
        if not _own_fields(request):
            request.messages = [_as_trained(message) for message in request.messages]
        with _cut_pictures(request.truncate_prompt_tokens):
            result = await self._renderer.render_chat(request, skip_mm_cache=skip_mm_cache)
        if isinstance(result, ErrorResponse):
            return result
        conversation, inputs = result
        given: Sequence[GivenTypes] = getattr(request, "given_types", ())
        with refusals():
            for prompt_ids in map(_ids_of, inputs):
                if _own_fields(request):
                    self._check_own(request.vllm_xargs, [prompt_ids], given)
                    continue
                messages = put_types(conversation, given)
                work = partial(self._typer.fields, messages, prompt_ids, **self._read_by_template(request))
                fields = await asyncio.get_running_loop().run_in_executor(self._thread, work)
                request.vllm_xargs = {**(request.vllm_xargs or {}), **fields}
        return result

    async def render_completion(self, request: Any, *, skip_mm_cache: bool = False) -> Any:
        """Render prompts; those without types have the default type of the rules.

        Raises:
            VLLMValidationError: As `render_chat`.
        """
        self._refuse(request)
        result = await self._renderer.render_completion(request, skip_mm_cache=skip_mm_cache)
        if isinstance(result, ErrorResponse):
            return result
        with refusals():
            if TYPES not in _own_fields(request):
                request.vllm_xargs = {**(request.vllm_xargs or {}), TYPES: DEFAULT}
            self._check_own(request.vllm_xargs, list(map(_ids_of, result)))
        return result

    async def preprocess_completion(self, request: Any, **options: Any) -> Any:
        """Take in the tokens of a request to `/inference/v1/generate`, and check its types.

        Raises:
            VLLMValidationError: As `render_chat`.
        """
        self._refuse(request)
        result = await self._renderer.preprocess_completion(request, **options)
        with refusals():
            self._check_own(request.sampling_params.extra_args or {}, list(map(_ids_of, result)))
        return result

    async def preprocess_chat(self, request: Any, messages: Any, **options: Any) -> Any:
        """Render one conversation of `/v1/chat/completions/batch`; only types that the request brings along are checked.

        Raises:
            VLLMValidationError: As `render_chat`.
        """
        self._refuse(request)
        result = await self._renderer.preprocess_chat(request, messages, **options)
        self._check_brought(request, result[1])
        return result

    async def render_responses(self, request: Any, **options: Any) -> Any:
        """Render the input of `/v1/responses`; only types that the request brings along are checked.

        Raises:
            VLLMValidationError: As `render_chat`.
        """
        self._refuse(request)
        result = await self._renderer.render_responses(request, **options)
        if not isinstance(result, ErrorResponse):
            self._check_brought(request, [result.engine_input])
        return result

    def _check_brought(self, request: Any, inputs: Sequence[Any]) -> None:
        with refusals():
            if TYPES in _own_fields(request):  # without, it is refused where requests are admitted
                self._check_own(request.vllm_xargs, list(map(_ids_of, inputs)))

    def check_tokens(self, body: Any) -> None:
        """Check a request to `/inference/v1/generate` that brings pictures: vLLM takes it in without its renderer.

        Args:
            body: The request, as JSON; one that is malformed is left to vLLM.

        Raises:
            VLLMValidationError: As `render_chat`.
        """
        sent = sent_with_pictures(body)
        if sent is None:
            return
        model = body.get("model")
        named = {name: body.get(name) for name in _WITHOUT_TYPES}
        self._refuse(SimpleNamespace(model=model if isinstance(model, str) else None, **named))
        params = body.get("sampling_params")
        fields = params.get("extra_args") if isinstance(params, Mapping) else None
        with refusals():
            self._check_own(fields if isinstance(fields, Mapping) else {}, [sent])

    def _refuse(self, request: Any) -> None:
        """Refuse what loses its types on its way, and adapters with rules of their own.

        Raises:
            VLLMValidationError: It names the field.
        """
        with refusals():
            check_adapter(self._adapters.get(request.model), self._config)
            for name, why in _WITHOUT_TYPES.items():
                if getattr(request, name, None):
                    raise InvalidTypes(f"{name}: cannot be honoured with HSA: {why}. Leave it out.")

    def _check_own(
        self, fields: Mapping[str, Any], prompts: Sequence[Sequence[int]], given: Sequence[GivenTypes] = ()
    ) -> None:
        """Check the fields that a client sends itself.

        Raises:
            InvalidTypes: If they do not fit.
        """
        if any(types != GivenTypes() for types in given):
            raise InvalidTypes(
                f"The request has both: {TYPES} in vllm_xargs, and semantic_type at messages. Send one."
            )
        for number, prompt_ids in enumerate(prompts):
            try:
                self._typer.tagger(types_of(fields, len(prompt_ids), self._config).roles)
            except InvalidTypes as error:
                several = f"prompt {number} of {len(prompts)}, which share vllm_xargs: " if len(prompts) > 1 else ""
                raise InvalidTypes(f"{several}{error}") from None

    def _read_by_template(self, request: Any) -> dict[str, Any]:
        """Return what the chat template read beside the messages, as `ChatTyper.fields` takes it."""
        inner = self._renderer
        no_tools = request.tool_choice == "none" and inner.exclude_tools_when_tool_choice_none
        tools = None if request.tools is None or no_tools else [tool.model_dump() for tool in request.tools]
        return {
            "tools": tools,
            "chat_template": request.chat_template or inner.chat_template,
            "options": inner.effective_chat_template_kwargs(request),
            "is_cut": request.truncate_prompt_tokens is not None,
        }


@contextmanager
def refusals() -> Iterator[None]:
    """Turn wrong types into what vLLM answers with 400."""
    try:
        yield
    except InvalidTypes as error:
        raise VLLMValidationError(str(error)) from error


@contextmanager
def _cut_pictures(limit: int | None) -> Iterator[None]:
    """Say of a prompt that was cut before a picture's place what vLLM says by an assertion, as an error of its own."""
    try:
        yield
    except AssertionError as error:
        if limit is None:
            raise
        raise VLLMValidationError(
            f"truncate_prompt_tokens={limit}: cuts away a picture of the prompt. Allow more tokens, or send fewer messages."
        ) from error


def _as_trained(message: Any) -> Any:
    """Return a message with the role that training has for it, as `hsa-factory api` does: a developer's is the system's."""
    is_other = isinstance(message, Mapping) and message.get("role") == "developer"
    return {**message, "role": "system"} if is_other else message


def _own_fields(request: Any) -> Mapping[str, Any]:
    return {name: value for name, value in (request.vllm_xargs or {}).items() if name in FIELDS}


def _ids_of(engine_input: Any) -> list[int]:
    """Return the tokens of a prompt as it was sent, one for each picture.

    Raises:
        InvalidTypes: If something else is in it.
    """
    kind, places = engine_input.get("type"), engine_input.get("mm_placeholders") or {}
    if kind not in ("token", "multimodal"):
        raise InvalidTypes(f"{kind}: served with HSA on vLLM are text and pictures.")
    refuse_media(places)
    spans = [(place.offset, place.length) for place in places.get(PICTURE, ())]
    return as_sent(engine_input["prompt_token_ids"], spans)
