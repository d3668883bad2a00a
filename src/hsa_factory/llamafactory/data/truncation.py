"""Truncation that never cuts media in half: which turns LLaMA-Factory would keep, and which media remain."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llamafactory.data.processor.processor_utils import infer_seqlen

from .template import PLACEHOLDERS, Pairs


Counts = tuple[int, int, int]  # images, videos, audios


@dataclass(frozen=True)
class Cut:
    """What remains of a sample.

    Attributes:
        first: Index of the first turn (a prompt and its response) that remains.
        stop: Index after the last one.
        turns_removed: Whether whole turns go because the cut would fall inside media.
    """

    first: int
    stop: int
    turns_removed: bool


def count_media(messages: Sequence[dict[str, Any]]) -> list[Counts]:
    """Count the media of each turn, (prompt, response) pair by pair, from the placeholders in the raw messages."""
    turns = [messages[i : i + 2] for i in range(0, len(messages), 2)]
    image, video, audio = PLACEHOLDERS
    return [(_count(turn, image), _count(turn, video), _count(turn, audio)) for turn in turns]


def _count(messages: Sequence[dict[str, Any]], placeholder: str) -> int:
    return sum(message["content"].count(placeholder) for message in messages)


def kept_lengths(pairs: Pairs, start_length: int, cutoff_len: int, from_end: bool) -> Iterator[tuple[int, int, int]]:
    """Yield what LLaMA-Factory's truncation leaves, in its order: (index of a turn, prompt ids, response ids).

    Args:
        pairs: Prompt and response ids of each turn.
        start_length: Tokens counted before the first turn.
        cutoff_len: LLaMA-Factory's limit.
        from_end: Whether later turns have priority (`mask_history`).
    """
    total = start_length
    for index in range(len(pairs) - 1, -1, -1) if from_end else range(len(pairs)):
        if total >= cutoff_len:
            return
        prompt_ids, response_ids = pairs[index]
        prompt_length, response_length = infer_seqlen(len(prompt_ids), len(response_ids), cutoff_len - total)
        total += prompt_length + response_length
        yield index, prompt_length, response_length


def fit_labels(labels: Sequence[int], kept: Sequence[tuple[int, int, int]], start: int, from_end: bool) -> list[int]:
    """Return labels without those that stand at no id, so that the others stand at theirs.

    Where one EOS ends a conversation, LLaMA-Factory puts the label that ends a reply at the first id of the next prompt,
    also if that prompt has no id at all (an empty message, in a template that writes nothing around it).

    Args:
        labels: LLaMA-Factory's.
        kept: From `kept_lengths`.
        start: Labels before those of the first turn.
        from_end: As of `kept_lengths`.
    """
    fitted, position = list(labels[:start]), start
    first = kept[0][0] if kept else None  # no reply is before it
    for index, prompt_length, response_length in reversed(kept) if from_end else kept:
        position += prompt_length == 0 and index != first
        end = position + prompt_length + response_length
        fitted += labels[position:end]
        position = end
    return fitted + list(labels[position:])


def plan_cut(
    pairs: Pairs,
    media: Sequence[Counts],
    media_ids: frozenset[int],
    start_length: int,
    cutoff_len: int,
    from_end: bool,
) -> Cut:
    """Follow LLaMA-Factory's truncation turn by turn, and stop before the turn whose media it would cut.

    Args:
        pairs: Prompt and response ids of each turn.
        media: Media of each turn.
        media_ids: Ids that stand for media or enclose them.
        start_length: Tokens counted before the first turn.
        cutoff_len: LLaMA-Factory's limit.
        from_end: Whether later turns have priority (`mask_history`).

    Returns:
        The turns that LLaMA-Factory should be given. Without media in the way these are the ones it reaches itself.
    """
    number = len(pairs)
    reached, removed = 0, False
    for index, prompt_length, response_length in kept_lengths(pairs, start_length, cutoff_len, from_end):
        prompt_ids, response_ids = pairs[index]
        cut_away = prompt_ids[prompt_length:] + response_ids[response_length:]
        if cut_away and any(media[index]) and _cuts_media(prompt_ids + response_ids, cut_away, media_ids):
            removed = True
            break
        reached += 1

    first, stop = (number - reached, number) if from_end else (0, reached)
    return Cut(first, stop, removed)


def _cuts_media(turn_ids: Iterable[int], cut_away: Iterable[int], media_ids: frozenset[int]) -> bool:
    if media_ids.isdisjoint(turn_ids):
        return True  # media that are not recognised in the ids: never risk a cut
    return not media_ids.isdisjoint(cut_away)


def media_token_ids(mm_plugin: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids of every token that a multimodal plugin names."""
    names = {value for name, value in vars(mm_plugin).items() if name.endswith("_token") and isinstance(value, str)}
    ids = (tokenizer.convert_tokens_to_ids(name) for name in names)
    return frozenset(token_id for token_id in ids if token_id is not None and token_id != tokenizer.unk_token_id)
