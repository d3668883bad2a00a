"""Scores of a reward model: it gets raw texts, which rules can type, and which are refused where they cannot."""

from typing import Any

import llamafactory.chat.chat_model
import numpy as np
import torch
from llamafactory.chat.hf_engine import HuggingfaceEngine
from llamafactory.hparams import read_args
from llamafactory.hparams.parser import _parse_infer_args

from ...config import HSAConfig
from ...labeling.conversation import type_conversation
from ...labeling.matching import Message
from ...labeling.rule import Rule
from ...labeling.rule_set import RuleSet
from ...models.enable import get_state
from ...semantics import SemanticType
from ...typed.text import token_types
from ...user_errors import UserError
from ..seams import Seam


_MOST_TOKENS = 2**31 - 1


def scoring_seams() -> list[Seam]:
    """Return what is replaced where LLaMA-Factory scores texts, or would chat with a model that can only score them."""
    return [
        Seam(HuggingfaceEngine, "_get_scores", _get_scores),
        Seam(llamafactory.chat.chat_model, "run_chat", _run_chat),
    ]


def _run_chat(original: Any) -> None:
    """Refuse to chat with a model that does not answer, before it is loaded.

    Raises:
        UserError: Saying what to do.
    """
    _, _, finetuning_args, _ = _parse_infer_args(read_args())
    if finetuning_args.stage != "sft":
        raise UserError(
            f"A model of `stage: {finetuning_args.stage}` scores texts and does not chat. Serve it with `hsa-factory api` and ask "
            "/v1/score/evaluation, or leave `stage` out to chat with the language model below its value head."
        )
    original()


def _get_scores(
    original: Any, model: Any, tokenizer: Any, batch_input: list[str], input_kwargs: dict[str, Any] | None = None
) -> Any:
    """Score texts with their types; without HSA as LLaMA-Factory does.

    Raises:
        ValueError: If there is nothing to score in a text, `max_length` is no length, or the rules cannot type raw texts; says why.
    """
    _check_asked(batch_input, (input_kwargs or {}).get("max_length"))
    hsa = get_state(model)
    if hsa is not None:
        tokenizer = TypingTokenizer(tokenizer, hsa.config)
    return original(model, tokenizer, batch_input, dict(input_kwargs or {}))


def _check_asked(texts: list[str], max_length: int | None) -> None:
    """Refuse what has no last token to read a score at.

    Raises:
        ValueError: Naming the text or the option.
    """
    empty = next((number for number, text in enumerate(texts) if not text), None)
    if empty is not None:
        raise ValueError(f"messages[{empty}]: the text is empty, so that there is no token to score. Leave it out.")
    if max_length is not None and not 1 <= max_length <= _MOST_TOKENS:
        raise ValueError(
            f"max_length: {max_length} is not allowed: a number of tokens from 1 to {_MOST_TOKENS}, or none."
        )


class TypingTokenizer:
    """Tokenizes raw texts as a tokenizer does, and adds `semantic_ids` to what it returns.

    Args:
        tokenizer: Of transformers, with offsets.
        config: The rules of the model's attention.

    Raises:
        ValueError: If the rules cannot type raw texts; says why.
    """

    def __init__(self, tokenizer: Any, config: HSAConfig) -> None:
        self.rules = _rules_for_texts(config)
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} does not say where its tokens stand in a text, so that rules cannot type texts."
            )
        self.tokenizer, self.default = tokenizer, config.default

    def __call__(self, texts: list[str], **options: Any) -> Any:
        """Tokenize texts; of `semantic_ids` (B, L), padding is NOISE."""
        inputs = self.tokenizer(texts, return_offsets_mapping=True, **options)
        offsets, masks = inputs.pop("offset_mapping").tolist(), inputs["attention_mask"].bool()
        semantic_ids = torch.full_like(inputs["input_ids"], int(SemanticType.NOISE))
        for row, text in enumerate(texts):
            (typed,) = type_conversation([Message("", text)], self.rules, self.default)
            places = [tuple(place) for place, is_real in zip(offsets[row], masks[row].tolist()) if is_real]
            kinds = np.frombuffer(token_types(typed, places, len(places)), np.uint8).astype(np.int64)
            semantic_ids[row, masks[row]] = torch.from_numpy(kinds)
        inputs["semantic_ids"] = semantic_ids
        return inputs


def _rules_for_texts(config: HSAConfig) -> RuleSet:
    """Return the rules, if what they say can be said of a text that is no message.

    Raises:
        ValueError: Naming what cannot.
    """
    what = "This reward model attends by the types of its tokens (HSA), and a raw text has none"
    if config.has_turns:
        raise ValueError(f"{what}: its rules count turns, and there are none in a raw text.")
    if config.rules is None:
        raise ValueError(f"{what}. Start the server with `hsa.rules` that type parts of a text (`tag`, `pattern`).")
    rules = RuleSet.parse(config.rules)
    unfit = next((rule for rule in rules if not _is_about_parts(rule)), None)
    if unfit is not None:
        raise ValueError(
            f"{what}: rule {unfit.name!r} is about a message (its role, turn, tool or whole text). Start the server with "
            "`hsa.rules` that type parts of a text alone (`tag`, `pattern`)."
        )
    return rules


def _is_about_parts(rule: Rule) -> bool:
    """Whether a rule types parts of a text, whatever message it stands in."""
    about_messages = (rule.role, rule.turn, rule.contains, rule.tool if not rule.tag else ())
    return rule.types_parts and not any(about_messages)
