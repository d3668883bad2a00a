"""Chat messages for vLLM's engine without a server: their tokens, and the types as the engine takes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..config import HSAConfig
from .server.chat_prompt import ChatTyper


def chat_request(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    config: HSAConfig,
    tools: Sequence[Any] | None = None,
    **options: Any,
) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Encode a conversation as a server would; vLLM's own `LLM.chat` leaves types out.

    Args:
        tokenizer: The model's, with a chat template.
        messages: Chat messages; they and their parts may have a `semantic_type`.
        config: The model's rules: ``HSAConfig.from_pretrained(directory)``.
        tools: Descriptions of tools for the template.
        **options: For `apply_chat_template`: `add_generation_prompt` (True unless given), `chat_template`, what it reads.

    Returns:
        The prompt, and the `extra_args` of its `SamplingParams`.

    Raises:
        InvalidTypes: If the types cannot be told for certain; the message says why.

    Example:
        >>> prompt, types = chat_request(tokenizer, messages, config)
        >>> llm.generate([prompt], SamplingParams(max_tokens=64, extra_args=types))
    """
    options = {"add_generation_prompt": True, **options}
    template = options.pop("chat_template", None)
    copies = [dict(message) for message in messages]
    chosen = {} if template is None else {"chat_template": template}
    written = tokenizer.apply_chat_template(copies, tools=tools, tokenize=True, return_dict=True, **chosen, **options)
    ids = [int(token) for token in written["input_ids"]]
    fields = ChatTyper(tokenizer, config).fields(messages, ids, tools=tools, chat_template=template, options=options)
    return {"prompt_token_ids": ids}, fields
