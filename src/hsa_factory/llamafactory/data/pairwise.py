"""LLaMA-Factory's processor of pairs (stages `dpo` and `rm`), plus the types and loss masks of both sides."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any, ClassVar

from llamafactory.data.processor import PairwiseDatasetProcessor

from ...feedback import IGNORE_INDEX
from ...training.preference import SIDES
from ...typed.ids import TypedTokenId, fill_types, tags_of
from .aligned import INDEX_COLUMN, SOURCE_COLUMN
from .loss_mask import DECIDING, mask_pairs
from .report import DatasetAccount
from .sample_errors import MEDIA_TOO_LONG, NO_MARKER, NOT_TWO_REPLIES, NOTHING_TO_TRAIN, SampleDropped, errors_name
from .template import ALWAYS_KEY, TYPE_KEY, WEIGHT_KEY, place_of
from .token_table import Tokens
from .turns import has_reply, number_tokens
from .typed_processor import Sample, TypedProcessorMixin
from .weighing import Weighing


_PROMPT_WEIGHTS = "weights of messages of prompts, which pairs do not train"
_PAIRS_OF_TURNS = 2  # a prompt and a response


@dataclass
class TypedPairwiseProcessor(TypedProcessorMixin, PairwiseDatasetProcessor):
    """One row a pair: the prompt with the chosen reply, and the prompt with the rejected one.

    Feedback decides as in a conversation that ends with the reply. Only the reply is trained, whatever is said of the prompt.
    """

    prefixes: ClassVar[tuple[str, ...]] = tuple(f"{side}_" for side in SIDES)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.has_weights = False
        self.template.on_turn = self._decide
        self._waiting: list[Sample] = []  # the sides that LLaMA-Factory has not encoded yet

    def _encode_samples(self, columns: dict[str, list[Any]], i: int, account: DatasetAccount) -> list[Sample]:
        """Encode one pair as LLaMA-Factory does, cut to `cutoff_len`, its ids typed.

        Raises:
            SampleDropped: With the reason.
            ValueError: If it cannot be encoded, or a policy says ``error``; names the data set and the sample.
        """
        source, index = columns[SOURCE_COLUMN][i], columns[INDEX_COLUMN][i]
        facts = {"dataset": source, "index": index}
        with errors_name(f"dataset {source!r}, sample {index}"):
            prompt, replies, *others = self._typed_columns(columns, i)
            if len(prompt) % 2 != 1 or len(replies) < len(SIDES):
                raise SampleDropped(NOT_TWO_REPLIES)
            sides = [
                Sample(_conversation(prompt, reply, side), facts=dict(facts)) for side, reply in zip(SIDES, replies)
            ]
            self._waiting = list(sides)
            encoded = self._encode_uncached(prompt, replies, *others)
            account.with_marker += any(sample.masked.has_marker for sample in sides)
            self._check_marker(sides)
            front = self._front_ids(others[2:]) if any(others[2:]) else []
            prompts_cut = [self._finish(*facts, front) for facts in zip(sides, encoded[::2], encoded[1::2])]
            if any(sample.facts["marker_cut"] for sample in sides):
                account.cut_marker(index)
            self._check_media(sides, any(others[2:]), front)
            self._check_trained(sides)

        sides[1].counted = len(sides[1].lengths) - _PAIRS_OF_TURNS
        account.notes[_PROMPT_WEIGHTS] += sum(message.get(WEIGHT_KEY) not in (None, 0, 1) for message in prompt)
        account.prompts_cut += any(prompts_cut)
        self._count(sides, account)
        return sides

    def _decide(
        self, prompt_ids: list[TypedTokenId], response_ids: list[TypedTokenId]
    ) -> tuple[list[TypedTokenId], list[TypedTokenId]]:
        """Look at a whole side before it is cut: what is trained of it."""
        sample = self._waiting.pop(0)
        ends = [*accumulate(self.template.lengths[:-2], initial=0), len(prompt_ids)]  # an empty thought may follow
        messages = [*(prompt_ids[start:stop] for start, stop in pairwise(ends)), response_ids]
        sample.masked = mask_pairs(
            list(zip(messages[::2], messages[1::2])),
            sample.messages,
            self.marker_id,
            self.feedback_config,
            eos_follows=False,
            train_on_prompt=False,
            weighing=Weighing(self.template.system_length, self.media_ids),
        )
        pairs = sample.masked.pairs
        if self.on_whole is not None:
            pairs = self.on_whole(pairs)
        *prompt, response = chain.from_iterable(pairs)
        sample.lengths = [*map(len, prompt), len(response)]
        sample.whole_length = sum(sample.lengths)
        sample.whole_media = self._count_media_tokens(chain(*prompt, response))
        template = self.template
        sample.counts = (template.guessed, template.lost_parts, template.filled)
        return list(chain.from_iterable(prompt)), response

    def _finish(
        self, sample: Sample, input_ids: list[TypedTokenId], labels: Sequence[int], front: Sequence[int]
    ) -> int:
        """Read off what became of one side; return how many tokens `cutoff_len` took from the end of its prompt."""
        prompt_length = labels.count(IGNORE_INDEX)
        reply_type = sample.messages[-1][TYPE_KEY]
        prompt_ids = fill_types(input_ids[:prompt_length], self.hsa_config.default)
        sample.input_ids = prompt_ids + fill_types(input_ids[prompt_length:], reply_type)
        sample.tokens = Tokens.read(sample.input_ids, labels)

        cut_away = sample.whole_length + len(front) + self.template.efficient_eos - len(input_ids)
        deciding = sample.masked.deciding if cut_away else 0
        marker_is_cut = deciding > 0 and tags_of(input_ids).count(DECIDING) < deciding
        sample.facts |= {"cut": cut_away, "marker_cut": marker_is_cut}

        whole_prompt = sum(sample.lengths[:-1]) + len(front)
        sample.in_front = min(len(front), prompt_length)
        left = prompt_length - sample.in_front
        for k, length in enumerate(sample.lengths[:-1]):
            sample.lengths[k] = min(length, left)
            left -= sample.lengths[k]
        sample.lengths[-1] = len(input_ids) - prompt_length
        if self.has_turns:
            sample.tokens.turn_ids = number_tokens(sample.messages, 0, sample.lengths, sample.in_front, 0)
        return whole_prompt - prompt_length

    def _check_marker(self, sides: Sequence[Sample]) -> None:
        feedback = self.feedback_config
        if feedback is None or feedback.missing == "train" or any(sample.masked.has_marker for sample in sides):
            return
        if feedback.missing == "error":
            where = f" in a message of role {feedback.scope!r}" if feedback.scope else ""
            raise ValueError(f"neither side has a {feedback.token}{where} (feedback.missing is 'error').")
        raise SampleDropped(NO_MARKER)

    def _check_media(self, sides: Sequence[Sample], has_media: bool, front: Sequence[int]) -> None:
        """Leave out a pair of which the cut took a part of its media: what is left of them would not match the ids."""
        for sample in sides if has_media else ():
            whole = sample.whole_media + self._count_media_tokens(front)
            if sample.facts["cut"] and (not whole or self._count_media_tokens(sample.input_ids) < whole):
                raise SampleDropped(MEDIA_TOO_LONG)

    def _check_trained(self, sides: Sequence[Sample]) -> None:
        for side, sample in zip(SIDES, sides):
            if sample.tokens.trained:
                continue
            if self.feedback_config is not None and self.feedback_config.empty == "error":
                raise ValueError(f"{side}: nothing is left to train (feedback.empty is 'error').")
            raise SampleDropped(f"{NOTHING_TO_TRAIN} in {side}")

    def _count(self, sides: Sequence[Sample], account: DatasetAccount) -> None:
        account.keep(b"".join(sample.tokens.semantic_ids for sample in sides), sum(s.tokens.trained for s in sides))
        for sample in sides:
            guessed, lost_parts, filled = sample.counts
            account.guessed_messages += guessed
            account.lost_call_parts += lost_parts
            account.filled_tokens += filled + sample.in_front + self.template.efficient_eos
        account.text_truncated += any(sample.facts["cut"] for sample in sides)
        if self.has_turns:
            account.without_reply += not any(has_reply(sample.messages) for sample in sides)


def _conversation(prompt: list[dict[str, Any]], reply: dict[str, Any], side: str) -> list[dict[str, Any]]:
    """Return the messages of one side, those of the prompt without weights.

    Raises:
        ValueError: If the reply has a weight that a loss of pairs does not know.
    """
    weight = reply.get(WEIGHT_KEY)
    if weight not in (None, 0, 1):
        raise ValueError(
            f"{side}, {place_of(reply, len(prompt))}: weight {weight:g}: the loss of pairs compares whole replies and knows no "
            "weights but 0 and 1. Remove it (from the message, or from `loss_weights`)."
        )
    return [*({**message, WEIGHT_KEY: None} for message in prompt), {**reply, ALWAYS_KEY: False}]
