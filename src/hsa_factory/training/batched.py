"""Many conversations at once, as `datasets.map` hands them over; conversations that cannot be trained are left out and counted."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import FeedbackConfig, HSAConfig
from ..loss_weights import LossWeightsConfig
from .encoding import ConversationLeftOut, encode_conversation


logger = logging.getLogger(__name__)
_COLUMNS = ("input_ids", "attention_mask", "semantic_ids", "labels")


def encode_conversations(
    examples: Mapping[str, Sequence[Any]],
    indices: Sequence[int] | None = None,
    *,
    tokenizer_or_processor: Any,
    config: HSAConfig,
    feedback: FeedbackConfig | None = None,
    max_length: int | None = None,
    messages_column: str = "messages",
    tools_column: str = "tools",
    weighed: bool = False,
    loss_weights: LossWeightsConfig | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
    **chat_template_kwargs: Any,
) -> dict[str, list[Any]]:
    """Encode a batch of conversations, for ``dataset.map(encode_conversations, batched=True, fn_kwargs={…})``.

    It is a plain function, so it goes to the workers of `num_proc`, and `datasets` knows its results again in the cache. Give
    ``with_indices=True`` for errors that say which row it is, and ``remove_columns=dataset.column_names``: there may be fewer
    rows than conversations. Those left out are counted in a warning.

    Args:
        examples: Columns of a batch.
        indices: Places of its rows in the data set; None: they are counted within the batch.
        tokenizer_or_processor: As of `encode_conversation`.
        config: As there.
        feedback: As there. A conversation that has no marker is left out if `missing` is ``drop``; one of which nothing is left
            to train if `empty` is ``drop``, as without `feedback`.
        max_length: As there. Conversations whose media do not fit are left out.
        messages_column: Column of the conversations. Keys that are None are taken for absent: Arrow gives every message the
            keys of all others.
        tools_column: Column of the tools, lists or JSON texts, if there is one.
        weighed: Whether each row has `loss_weights`. Set it where some conversations have weights besides 0 and 1.
        loss_weights: As of `encode_conversation`.
        processor_kwargs: As there.
        **chat_template_kwargs: As there.

    Returns:
        Columns of the rows, as `encode_conversation` returns them.

    Raises:
        ValueError: If a conversation cannot be read, or a policy says ``error``; it names the row.
    """
    if messages_column not in examples:
        raise ValueError(
            f"there is no column {messages_column!r}: the data set has {', '.join(map(repr, examples))}. Name it with messages_column."
        )
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    tools = examples.get(tools_column)
    for number, messages in enumerate(examples[messages_column]):
        try:
            row = encode_conversation(
                tokenizer_or_processor,
                _without_none(messages),
                config,
                feedback,
                _without_none(tools[number]) if tools is not None else None,
                max_length,
                loss_weights,
                processor_kwargs,
                **chat_template_kwargs,
            )
        except Exception as error:
            place = f"row {number if indices is None else indices[number]}"
            if not isinstance(error, ConversationLeftOut) or error.is_refused:
                raise ValueError(f"{place}: {error}") from error
            left_out[error.reason] += 1
            continue
        if "loss_weights" in row and not weighed:
            place = f"row {number if indices is None else indices[number]}"
            raise ValueError(
                f"{place}: it has weights besides 0 and 1: pass weighed=True, so that every row has them."
            )
        if weighed:
            row.setdefault("loss_weights", [1.0] * len(row["input_ids"]))
        rows.append(row)
    if left_out:
        reasons = ", ".join(f"{reason} ({number})" for reason, number in left_out.most_common())
        logger.warning(
            "Left out %d of %d conversations: %s.", left_out.total(), len(examples[messages_column]), reasons
        )
    return _as_columns(rows, config, weighed)


def _without_none(value: Any) -> Any:
    """Return a value without keys that are None, which Arrow adds."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _as_columns(rows: list[dict[str, Any]], config: HSAConfig, weighed: bool) -> dict[str, list[Any]]:
    names = dict.fromkeys(_COLUMNS)
    names |= dict.fromkeys(["turn_ids"] if config.has_turns else [])
    names |= dict.fromkeys(["loss_weights"] if weighed else [])
    for row in rows:
        names |= dict.fromkeys(row)
    return {name: [row.get(name) for row in rows] for name in names}
