"""What processors share that encode a conversation as one prompt and one reply: of pairs (`dpo`, `rm`) and labels (`kto`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

from ...feedback import IGNORE_INDEX
from ...typed.ids import TypedTokenId, fill_types, tags_of
from .loss_mask import DECIDING, mask_pairs
from .report import DatasetAccount
from .sample_errors import MEDIA_TOO_LONG, NO_MARKER, NOTHING_TO_TRAIN, SampleDropped
from .template import ALWAYS_KEY, TYPE_KEY, WEIGHT_KEY, place_of
from .token_table import Tokens
from .turns import has_reply, number_tokens
from .typed_processor import Sample, TypedProcessorMixin
from .weighing import Weighing


PROMPT_WEIGHTS = "weights of messages of prompts, which this stage does not train"


@dataclass
class OneTurnMixin(TypedProcessorMixin):
    """Of a conversation only the last reply is trained, whatever is said of the prompt.

    Feedback decides as in a conversation that ends with the reply.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.has_weights = False
        self.template.on_turn = self._decide
        self._waiting: list[Sample] = []  # the conversations that LLaMA-Factory has not encoded yet, in its order

    def _decide(
        self, prompt_ids: list[TypedTokenId], response_ids: list[TypedTokenId]
    ) -> tuple[list[TypedTokenId], list[TypedTokenId]]:
        """Look at a whole conversation before it is cut: what is trained of it."""
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
        """Read off what became of a conversation; return how many tokens `cutoff_len` took from the end of its prompt."""
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
            raise ValueError(f"it has no {feedback.token}{where} (feedback.missing is 'error').")
        raise SampleDropped(NO_MARKER)

    def _check_media(self, sides: Sequence[Sample], has_media: bool, front: Sequence[int]) -> None:
        """Leave out a sample of which the cut took a part of its media: what is left of them would not match the ids."""
        for sample in sides if has_media else ():
            whole = sample.whole_media + self._count_media_tokens(front)
            if sample.facts["cut"] and (not whole or self._count_media_tokens(sample.input_ids) < whole):
                raise SampleDropped(MEDIA_TOO_LONG)

    def _check_trained(self, sample: Sample, side: str = "") -> None:
        """Leave out a conversation in which nothing is left to train.

        Args:
            sample: Finished.
            side: What a pair calls it; empty: it is all of its sample.
        """
        if sample.tokens.trained:
            return
        if self.feedback_config is not None and self.feedback_config.empty == "error":
            raise ValueError(f"{f'{side}: ' if side else ''}nothing is left to train (feedback.empty is 'error').")
        if not self._may_stay(sample.facts["dataset"], [sample]):
            raise SampleDropped(f"{NOTHING_TO_TRAIN} in {side}" if side else NOTHING_TO_TRAIN)

    def _count_trained(self, sides: Sequence[Sample]) -> int:
        """Return how many tokens of a sample the loss counts."""
        return sum(sample.tokens.trained for sample in sides)

    def _count(self, sides: Sequence[Sample], account: DatasetAccount) -> None:
        trained = self._count_trained(sides)
        account.keep(b"".join(sample.tokens.semantic_ids for sample in sides), trained)
        account.untrained += not trained
        for sample in sides:
            guessed, lost_parts, filled = sample.counts
            account.guessed_messages += guessed
            account.lost_call_parts += lost_parts
            account.filled_tokens += filled + sample.in_front + self.template.efficient_eos
        account.text_truncated += any(sample.facts["cut"] for sample in sides)
        if self.has_turns:
            account.without_reply += not any(has_reply(sample.messages) for sample in sides)


def conversation_of(prompt: list[dict[str, Any]], reply: dict[str, Any], side: str) -> list[dict[str, Any]]:
    """Return the messages of a conversation, those of the prompt without weights.

    Args:
        prompt: Messages before the reply.
        reply: The reply.
        side: What an error calls it.

    Raises:
        ValueError: If the reply has a weight that a loss of pairs does not know.
    """
    weight = reply.get(WEIGHT_KEY)
    if weight not in (None, 0, 1):
        raise ValueError(
            f"{side}, {place_of(reply, len(prompt))}: weight {weight:g}: the loss of this stage compares whole replies and knows no "
            "weights but 0 and 1. Remove it (from the message, or from `loss_weights`)."
        )
    return [*({**message, WEIGHT_KEY: None} for message in prompt), {**reply, ALWAYS_KEY: False}]
