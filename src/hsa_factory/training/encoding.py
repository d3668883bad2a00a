"""From a list of chat messages to what a trainer needs: ids, types, labels, turn numbers, weights."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from ..config import FeedbackConfig, HSAConfig
from ..feedback import IGNORE_INDEX
from ..labeling.parts import SPANS_KEY
from ..labeling.weights import STEP_KEY, WEIGHT_KEYS
from ..loss_weights import LossWeightsConfig
from ..typed.turns import number_messages
from .arguments import check_arguments
from .character_types import opened_by, type_characters
from .chat_template import ChatTemplate
from .layout import Layout, default_prompt_end
from .loss import LossDecision, decide_loss
from .messages import FORMAT, Conversation, read_conversation
from .replies import ReplyStarts
from .token_places import Encoded, encode
from .traced_values import KEY


logger = logging.getLogger(__name__)
ANNOTATIONS = (FORMAT.semantic_tag, SPANS_KEY, *WEIGHT_KEYS, STEP_KEY)
"""Keys of a message that say what is trained and remembered."""


class ConversationLeftOut(ValueError):
    """A conversation cannot be trained, though nothing is wrong with it.

    Attributes:
        reason: In a few words, to be counted.
        is_refused: Whether a policy says ``error``.
    """

    def __init__(self, message: str, reason: str, is_refused: bool = False) -> None:
        super().__init__(message)
        self.reason, self.is_refused = reason, is_refused

    def __reduce__(self) -> tuple[type, tuple[str, str, bool]]:
        return (type(self), (str(self), self.reason, self.is_refused))


NO_MARKER = "no feedback marker"
NOTHING_TO_TRAIN = "nothing left to train"
MEDIA_TOO_LONG = "media do not fit into max_length"


@dataclass(frozen=True)
class Tokens:
    """What is known of each token: arrays of one length."""

    owners: np.ndarray  # message that it belongs to
    speakers: np.ndarray  # message whose content it holds; NOWHERE: the template's text
    semantic_ids: np.ndarray
    is_reply: np.ndarray  # whether it is a part of a reply that the model learns to write
    is_media: np.ndarray
    open_replies: frozenset[int]  # replies that the template ends with no token of their own


def encode_conversation(
    tokenizer_or_processor: Any,
    messages: Sequence[Mapping[str, Any]],
    config: HSAConfig,
    feedback: FeedbackConfig | None = None,
    tools: Any = None,
    max_length: int | None = None,
    loss_weights: LossWeightsConfig | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
    **chat_template_kwargs: Any,
) -> dict[str, Any]:
    """Encode a conversation for training, with its model's own chat template.

    The ids are those of ``apply_chat_template(messages, tools=tools, **chat_template_kwargs)``. Which token belongs to which
    message is followed through the template, without any tags in it; what cannot be followed is an error. Types, labels,
    turn numbers, weights and what feedback leaves out are decided as for LLaMA-Factory's data, on the whole conversation
    before it is cut.

    Args:
        tokenizer_or_processor: With a chat template. Messages of a processor may hold images and videos.
        messages: As `apply_chat_template` takes them. A message, or a part of its content, may have a `semantic_type`; a
            message a weight (`weight`, `loss`, `loss_mask`, `loss_weight`, `trainable`, `step_label`).
        config: Types: default, rules, and whether turn numbers are needed.
        feedback: Which replies around ``<|feedback|>`` are trained; None: all.
        tools: JSON schemas, functions, or the JSON text of a list of schemas; None: there are none.
        max_length: Tokens that are kept, from the beginning; None: all. Media are never cut.
        loss_weights: What labels of steps mean, and weights by role; None: the defaults.
        processor_kwargs: For the processor's call, such as ``min_pixels``.
        **chat_template_kwargs: What the template reads (``enable_thinking``, `documents`, …), and `chat_template`.

    Returns:
        `input_ids`, `attention_mask`, `semantic_ids`, `labels` (-100: not trained), lists of one length; `turn_ids` if
        `config.has_turns`; `loss_weights`, floats, if a weight is neither 0 nor 1; and what else a processor gives.

    Raises:
        ConversationLeftOut: If there is nothing to train, `feedback.missing` is not ``train`` and there is no marker, or
            `max_length` would cut media.
        ValueError: If a message cannot be read (it names the turn and the key), or the template cannot be followed.
    """
    if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1):
        raise ValueError(f"max_length = {max_length!r} is not allowed: a whole number ≥ 1, or None.")
    check_arguments(tokenizer_or_processor, config, feedback, loss_weights, chat_template_kwargs)
    template = ChatTemplate(tokenizer_or_processor, tools, chat_template_kwargs)
    marker_id = None if feedback is None else find_marker(template.tokenizer, feedback)
    conversation = read_conversation(messages, config, loss_weights or LossWeightsConfig())
    encoded, tokens = encode_typed(template, conversation, processor_kwargs or {})
    decision = decide_loss(
        encoded.input_ids,
        tokens.owners,
        tokens.speakers,
        tokens.is_reply,
        tokens.is_media,
        conversation,
        marker_id,
        feedback,
        tokens.open_replies,
        _special_tokens(template.tokenizer),
    )
    if feedback is not None and not decision.has_marker and feedback.missing != "train":
        where = f" in a message of role {feedback.scope!r}" if feedback.scope else ""
        raise ConversationLeftOut(
            f"it has no {feedback.token}{where} (feedback.missing is {feedback.missing!r}).",
            NO_MARKER,
            feedback.missing == "error",
        )
    row = _row(encoded, tokens, decision, conversation, config)
    row = _cut(row, tokens, max_length)
    if all(label == IGNORE_INDEX for label in row["labels"]):
        why = _why_nothing(conversation, decision, max_length)
        raise ConversationLeftOut(why, NOTHING_TO_TRAIN, feedback is not None and feedback.empty == "error")
    return row


def encode_typed(
    template: ChatTemplate, conversation: Conversation, processor_kwargs: Mapping[str, Any]
) -> tuple[Encoded, Tokens]:
    """Tokenize a conversation, and say of each token whose it is and which type it has.

    Raises:
        ValueError: If the template refuses the conversation, or cannot be followed.
    """
    layout = Layout(template.trace_whole(conversation.messages))
    _tell_of_losses(layout, conversation, template)
    _refuse_annotations(layout, conversation, template)
    begins = ReplyStarts(template, conversation, layout).find_all()
    prompt_end = default_prompt_end(layout, conversation, template)
    types = type_characters(layout, conversation, prompt_end, begins)
    owners = opened_by(layout, conversation, begins)
    starts = np.full(len(conversation.facts), len(layout.text))
    starts[list(begins)] = list(begins.values())
    read = np.array(
        [*(not facts.is_reply for facts in conversation.facts), False]
    )  # the last one: the template's own text
    is_reply = (np.arange(len(layout.text)) >= starts[layout.writers]) & ~read[layout.speakers]

    bounds = _boundaries(owners, types, is_reply)
    try:
        encoded = encode(template, conversation.messages, layout.text, bounds, processor_kwargs)
    except (ValueError, TypeError) as error:  # TypeError: of a tokenizer, for a text that is no Unicode
        raise ValueError(f"{template.name}: {error}") from error
    tokens = _read_off(encoded, owners, layout.speakers, types, is_reply)
    return encoded, replace(tokens, open_replies=_open_replies(layout, begins, template.tokenizer))


def _open_replies(layout: Layout, begins: Mapping[int, int], tokenizer: Any) -> frozenset[int]:
    """Return the replies that the template ends with no special token, but for what closes an element (``</tool_call>``)."""
    names = _special_tokens(tokenizer).values()
    stops = [name for name in names if not name.startswith("</") or name == tokenizer.eos_token]
    return frozenset(reply for reply in begins if not any(stop in layout.closing(reply) for stop in stops))


def _tell_of_losses(layout: Layout, conversation: Conversation, template: ChatTemplate) -> None:
    """Warn of texts and calls that the template leaves out."""
    leaves = layout.rendering.sources.leaves
    written = {
        (message, path[:1])
        for message, path in (leaves[leaf] for leaf in np.unique(layout.rendering.leaves) if leaf >= 0)
    }
    whole = {message for message, path in written if not path}
    for number, message in enumerate(conversation.messages):
        for key in ("content", "tool_calls"):
            value = message.get(key)
            if (
                (value.strip() if isinstance(value, str) else value)
                and (number, (key,)) not in written
                and number not in whole
            ):
                _warn_once(f"{template.name} leaves out the {key} of messages with the role {message['role']!r}.")


def _refuse_annotations(layout: Layout, conversation: Conversation, template: ChatTemplate) -> None:
    """Refuse a template that writes whole messages or parts, with their types and weights, for the model to read."""
    leaves = layout.rendering.sources.leaves
    for message, path in (leaves[leaf] for leaf in np.unique(layout.rendering.leaves) if leaf >= 0):
        names = [] if path or message < 0 else [name for name in ANNOTATIONS if name in conversation.messages[message]]
        if path[:1] == ("content",) and path[-2:] == (KEY, FORMAT.semantic_tag):
            names = [path[-1]]
        if names:
            raise ValueError(
                f"{template.name} writes {names[0]!r} of turn {message} into the text, for the model to read: it writes "
                f"{'lists of parts' if path else 'messages'} as they are. Give the message one text and type it by rules or "
                f"{SPANS_KEY!r}, or use a template that writes contents only."
            )


@cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def _boundaries(*characters: np.ndarray) -> np.ndarray:
    length = len(characters[0])
    changes = np.zeros(max(length - 1, 0), bool)
    for values in characters:
        changes |= values[1:] != values[:-1]
    return np.array([0, *(np.flatnonzero(changes) + 1).tolist(), length])


def _read_off(
    encoded: Encoded, owners: np.ndarray, speakers: np.ndarray, types: np.ndarray, is_reply: np.ndarray
) -> Tokens:
    """Bring what is known of characters to the tokens.

    A token that reaches over several has the type among theirs that remembers most, and belongs to the message of its first.
    """
    length = len(encoded.characters)
    places = np.array(encoded.places, np.int64).reshape(-1, 2)
    firsts = np.minimum(places[:, 0], max(length - 1, 0))
    lasts = np.maximum(np.minimum(places[:, 1], length), firsts + 1)
    characters = encoded.characters[firsts]
    own = np.append(types[encoded.characters], 0)
    semantic_ids = np.minimum.reduceat(own, np.stack([firsts, lasts], 1).ravel())[::2] if len(firsts) else own[:0]
    return Tokens(
        owners[characters],
        speakers[characters],
        semantic_ids,
        is_reply[characters],
        encoded.media[firsts],
        frozenset(),
    )


def _row(
    encoded: Encoded, tokens: Tokens, decision: LossDecision, conversation: Conversation, config: HSAConfig
) -> dict[str, Any]:
    labels = np.where(decision.is_trained, np.array(encoded.input_ids, np.int64), IGNORE_INDEX)
    row: dict[str, Any] = {
        "input_ids": encoded.input_ids,
        "attention_mask": [1] * len(encoded.input_ids),
        "semantic_ids": tokens.semantic_ids.tolist(),
        "labels": labels.tolist(),
    }
    if config.has_turns:
        row["turn_ids"] = number_tokens(tokens, conversation)
    if decision.weights is not None:
        row["loss_weights"] = decision.weights.tolist()
    return {**row, **encoded.columns}


def number_tokens(tokens: Tokens, conversation: Conversation) -> list[int]:
    """Return each token's turn number."""
    numbers = np.array(number_messages(facts.is_reply for facts in conversation.facts))[tokens.owners]
    # A template may put a later message in front: numbers never fall.
    turns: list[int] = np.minimum.accumulate(numbers[::-1])[::-1].tolist()
    return turns


def _cut(row: dict[str, Any], tokens: Tokens, max_length: int | None) -> dict[str, Any]:
    """Keep the beginning of a row.

    Raises:
        ConversationLeftOut: If media would be cut.
    """
    length = len(row["input_ids"])
    if max_length is None or length <= max_length:
        return row
    if tokens.is_media[max_length:].any():
        last = int(np.flatnonzero(tokens.is_media)[-1]) + 1
        raise ConversationLeftOut(
            f"max_length = {max_length} would cut an image, a video or an audio clip: they end at token {last} of {length}. Raise "
            "max_length, use smaller pictures, or leave the conversation out.",
            MEDIA_TOO_LONG,
        )
    return {
        name: value[:max_length] if isinstance(value, list) and len(value) == length else value
        for name, value in row.items()
    }


def _why_nothing(conversation: Conversation, decision: LossDecision, max_length: int | None) -> str:
    if not any(facts.is_reply for facts in conversation.facts):
        return "it has no reply, so that there is nothing to train."
    if decision.is_trained.any():
        return f"max_length = {max_length} leaves none of its trained tokens, so that there is nothing to train. Raise it."
    return "feedback, weights or the chat template leave none of its replies to be trained."


def find_marker(tokenizer: Any, feedback: FeedbackConfig) -> int:
    """Return the id of the feedback marker.

    Raises:
        ValueError: If it is no single token of the tokenizer.
    """
    marker_id = tokenizer.convert_tokens_to_ids(feedback.token)
    if marker_id is None or marker_id == tokenizer.unk_token_id:
        raise ValueError(
            f"the tokenizer has no token {feedback.token!r}. Add it, and give the model a row for it: "
            f"tokenizer.add_special_tokens({{'additional_special_tokens': [{feedback.token!r}]}}, "
            "replace_extra_special_tokens=False); if len(tokenizer) > model.get_input_embeddings().num_embeddings: "
            "model.resize_token_embeddings(len(tokenizer))."
        )
    return int(marker_id)


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the special tokens by their ids."""
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    names = {token_id: str(token) for token_id, token in added.items() if token.special}
    return names | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens))
