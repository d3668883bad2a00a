"""LLaMA-Factory's engine for chat, api and webchat: every prompt has types, and no stream hangs or overlaps."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import llamafactory.chat.chat_model
import llamafactory.chat.hf_engine
import torch
from llamafactory.extras import logging
from llamafactory.hparams import read_args
from llamafactory.hparams.parser import _parse_infer_args
from transformers import StoppingCriteria, StoppingCriteriaList

from ...config import HSAConfig
from ...labeling.conversation import type_conversation
from ...labeling.matching import Message, label_messages
from ...labeling.rule_set import RuleSet
from ...models.enable import get_state
from ...models.generation.generate import generation_lock
from ...models.generation.rule_tagger import make_tagger
from ...semantics import SemanticType
from ...typed.ids import TypedTokenId, fill_types, semantic_ids_of
from ...typed.text import TypedText
from ..data.template import PLACEHOLDERS, TEXT_KEY, typed_template
from ..data.turns import has_turns, number_prompt
from ..model.loader import load_model_seam
from ..options import check_serving
from ..seams import Seam
from ..state import Integration
from .scoring import scoring_seams
from .tool_messages import REPLIES_KEY, join_replies, split_replies, with_readable_arguments


logger = logging.get_logger(__name__)

_CONTROL_KEY = "hsa_stream_control"  # of a request's generation options, until `process_args` takes it out


class StreamControl(StoppingCriteria):
    """Links a stream's reader with the thread that generates: ends the one when the other is gone.

    Attributes:
        turn: Lock of the model's generations; none for a model without HSA.
        error: What ended the thread, if it failed.
        thread: The thread; None: it was not made.
    """

    def __init__(self) -> None:
        self.turn: AbstractContextManager[Any] = nullcontext()
        self.error: BaseException | None = None
        self.thread: threading.Thread | None = None
        self._abandoned = threading.Event()

    def abandon(self) -> None:
        """Let the thread end at its next token: nobody reads any more."""
        self._abandoned.set()

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody reads any more."""
        return self._abandoned.is_set()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.is_abandoned, dtype=torch.bool, device=input_ids.device)


def chat_seams(state: Integration) -> list[Seam]:
    """Return what is replaced in LLaMA-Factory's Hugging Face engine. Models without HSA run as they do without it."""
    engine = llamafactory.chat.hf_engine
    return [
        Seam(llamafactory.chat.chat_model, "get_infer_args", partial(_get_infer_args, state)),
        load_model_seam(engine, state),
        Seam(engine.HuggingfaceEngine, "_process_args", _process_args),
        Seam(engine.HuggingfaceEngine, "_stream_chat", _encode_in_thread),
        Seam(engine.HuggingfaceEngine, "stream_chat", _stream_chat),
        Seam(engine, "Thread", _make_thread),
        *scoring_seams(),
    ]


def _get_infer_args(state: Integration, original: Any, args: Any = None) -> Any:
    """Refuse an engine that would run the model without HSA, before that engine is looked for or started."""
    if state.hsa:
        args = read_args(args)
        model_args, _, finetuning_args, _ = _parse_infer_args(args)
        check_serving(state.hsa, model_args, finetuning_args)
    return original(args)


def _process_args(
    original: Any,
    model: Any,
    tokenizer: Any,
    processor: Any,
    template: Any,
    generating_args: dict[str, Any],
    messages: list[dict[str, Any]],
    system: str | None = None,
    tools: str | None = None,
    images: list[Any] | None = None,
    videos: list[Any] | None = None,
    audios: list[Any] | None = None,
    input_kwargs: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], int]:
    """Encode a conversation with types and turns, and hand them to `generate`."""
    input_kwargs = dict(input_kwargs or {})
    control: StreamControl | None = input_kwargs.pop(_CONTROL_KEY, None)
    media = (images, videos, audios)
    hsa = get_state(model)
    prompt: list[int] = []
    messages = with_readable_arguments(messages, template)
    if hsa is not None:
        template = typed_template(template, hsa.config.default)
        template.on_prompt = prompt.extend
        messages, system = type_messages(_with_placeholders(messages, media), system, hsa.config)

    try:
        gen_kwargs, prompt_length = original(
            model, tokenizer, processor, template, generating_args, messages, system, tools, *media, input_kwargs
        )
    except (ValueError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a template, a tool format or a processor cannot take what it was given
        calls = " A tool call must be JSON with `name` and `arguments`." if _has_calls(messages) else ""
        raise ValueError(f"This conversation cannot be encoded: {error!r}.{calls}") from error
    if hsa is not None:
        semantic_ids = semantic_ids_of(_with_prefix(prompt, gen_kwargs["inputs"][0].tolist())).astype("int64")
        roles = ["system"] * bool(system)
        roles += [message["role"] for message in messages for _ in message.get(REPLIES_KEY, range(1))]
        gen_kwargs["tagger"] = make_tagger(hsa.config, tokenizer, roles)
        gen_kwargs["semantic_ids"] = torch.from_numpy(semantic_ids)[None].to(model.device)
        if has_turns(hsa.config):
            turn_ids = number_prompt(messages, template.lengths, len(prompt), len(semantic_ids) - len(prompt))
            gen_kwargs["turn_ids"] = torch.from_numpy(turn_ids)[None].to(model.device)
    if control is not None:
        gen_kwargs["stopping_criteria"] = StoppingCriteriaList([control])
        if hsa is not None:
            control.turn = generation_lock(hsa)
    return gen_kwargs, prompt_length


def _has_calls(messages: list[dict[str, Any]]) -> bool:
    return any(message.get("role") == "function" for message in messages)


async def _stream_chat(original: Any, engine: Any, *args: Any, **input_kwargs: Any) -> AsyncGenerator[str, None]:
    """Answer piece by piece; an error in the thread that generates is raised here, and a lost reader ends it."""
    control = StreamControl()
    stream = original(engine, *args, **{**input_kwargs, _CONTROL_KEY: control})
    try:
        async for text in stream:
            yield text
    finally:
        control.abandon()
        await stream.aclose()
    if (
        control.thread is not None
    ):  # the last piece comes before its end, and a process that ends in between is aborted
        await asyncio.to_thread(control.thread.join)
    if control.error is not None:
        raise control.error


def _encode_in_thread(original: Any, *args: Any) -> Callable[[], str]:
    """Encode with the first piece that is asked for, which happens in a thread: no other client has to wait for it."""
    stream: Callable[[], str] | None = None

    def next_piece() -> str:
        nonlocal stream
        if stream is None:
            stream = original(*args)
        return stream()

    return next_piece


def _make_thread(original: Any, *args: Any, target: Any, kwargs: dict[str, Any], **options: Any) -> Any:
    """Make the thread that generates for a stream; the stream ends with it in any case."""
    criteria = kwargs.get("stopping_criteria") or ()
    control = next((item for item in criteria if isinstance(item, StreamControl)), StreamControl())

    def run(**gen_kwargs: Any) -> None:
        try:
            with control.turn:
                if not control.is_abandoned:  # the reader may have left while others had their turn
                    target(**gen_kwargs)
        except BaseException as error:
            logger.error(f"Generation failed: {error!r}", exc_info=True)
            control.error = error
        finally:
            gen_kwargs["streamer"].on_finalized_text("", stream_end=True)

    control.thread = original(*args, target=run, kwargs=kwargs, **options)
    return control.thread


def type_messages(
    messages: list[dict[str, Any]], system: str | None, config: HSAConfig
) -> tuple[list[dict[str, Any]], str | None]:
    """Type the messages of a request.

    Args:
        messages: LLaMA-Factory's, with `role`, `content` and, where the client gave one, a semantic type.
        system: The system prompt; a `TypedText` if the client gave its type.
        config: The model's.

    Returns:
        Copies of the messages that the typed template reads, and the typed system prompt.

    Raises:
        ValueError: If a message has no text, or a type is not valid.
    """
    read: list[list[Message]] = [[Message("system", system, getattr(system, "semantic_type", None))]] if system else []
    for number, message in enumerate(messages):
        where = f"message {number} ({message.get('role')})"
        if not isinstance(message.get("content"), str):
            raise ValueError(f"{where}: content must be a text.")
        try:
            read.append(split_replies(message))
            for reply in read[-1]:
                given = reply.semantic_type
                reply.semantic_type = None if given is None else int(SemanticType.parse(given))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    rules = RuleSet.parse(config.rules) if config.rules is not None else None
    texts = _type_all(read, rules, config)
    if system:
        system = texts.pop(0)
    typed = [{**message, "content": text, TEXT_KEY: text} for message, text in zip(messages, texts)]
    return typed, system


def _type_all(turns: list[list[Message]], rules: RuleSet | None, config: HSAConfig) -> list[TypedText]:
    """Type a conversation; of a turn of several replies each is typed by itself, then they are joined."""
    flat = [message for turn in turns for message in turn]
    texts = type_conversation(flat, rules, config.default, config.generated)
    if len(flat) == len(turns):
        return texts
    typings, joined, place = label_messages(flat, rules), [], 0
    for turn in turns:
        own = slice(place, place + len(turn))
        place += len(turn)
        joined.append(texts[own][0] if len(turn) == 1 else join_replies(texts[own], typings[own], int(config.default)))
    return joined


def _with_placeholders(messages: list[dict[str, Any]], media: tuple) -> list[dict[str, Any]]:
    """Put media that no message names before the first one, as LLaMA-Factory would, so that rules see them."""
    messages = [dict(message) for message in messages]
    for placeholder, files in zip(PLACEHOLDERS, media):
        texts = [message.get("content") or "" for message in messages]
        if files is not None and messages and not any(placeholder in text for text in texts):
            messages[0]["content"] = placeholder * len(files) + texts[0]
    return messages


def _with_prefix(prompt: list[int], input_ids: list[int]) -> list[TypedTokenId]:
    """Return a prompt's typed ids with the ids that LLaMA-Factory put before them (the images of PaliGemma).

    Raises:
        ValueError: If the finished ids do not end with the prompt's.
    """
    start = len(input_ids) - len(prompt)
    if start < 0 or input_ids[start:] != prompt:
        raise ValueError("LLaMA-Factory changed the prompt after it was encoded; its types are lost.")
    return fill_types(input_ids[:start] + prompt)
