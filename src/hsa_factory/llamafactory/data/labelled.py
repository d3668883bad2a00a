"""LLaMA-Factory's processor of replies with a label (stage `kto`), plus types and loss masks of the replies and of the KL half."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
from datasets import Value
from llamafactory.data.mm_plugin import BasePlugin
from llamafactory.data.processor import FeedbackDatasetProcessor

from .aligned import INDEX_COLUMN, SOURCE_COLUMN
from .one_turn import PROMPT_WEIGHTS, OneTurnMixin, conversation_of
from .report import DatasetAccount
from .sample_errors import NO_LABEL, SampleDropped, check_media_numbers, errors_name
from .template import WEIGHT_KEY
from .typed_processor import Sample


KL_PREFIX = "kl_"
LABEL_COLUMN = "kto_tags"
KL_UNTRAINED = "replies of the KL half of which cutoff_len leaves nothing to compare"
_REPLIES = 2  # that of the data and the empty one
_Outcome = tuple[DatasetAccount, list[Sample] | SampleDropped]


class _LabelledRows(FeedbackDatasetProcessor):
    """LLaMA-Factory's loop, which cannot do without a sample."""

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if examples["_prompt"]:
            return super().preprocess_dataset(examples)
        rows: dict[str, list[Any]] = defaultdict(list)
        rows[LABEL_COLUMN] = []
        return rows


@dataclass
class TypedLabelledProcessor(OneTurnMixin, _LabelledRows):
    """One row a sample: the prompt with its reply, and the prompt with the reply of another sample (the KL half).

    That is the reply of the sample before it, as in LLaMA-Factory, among those that are kept: a reply of which feedback or a
    weight leaves nothing would measure nothing. The first sample of a batch has that of the last.
    """

    prefixes: ClassVar[tuple[str, ...]] = ("", KL_PREFIX)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.media = {**self.media, LABEL_COLUMN: Value("bool")}
        self._outcomes: list[_Outcome] = []

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]] | pa.Table:
        self._outcomes = self._encode_all({name: list(examples[name]) for name in examples.keys()})
        try:
            return super().preprocess_dataset(examples)
        finally:
            self._outcomes = []

    @property
    def inspected(self) -> tuple[str, ...]:
        return ("",)  # the KL half is made of two samples

    def _encode_all(self, columns: dict[str, list[Any]]) -> list[_Outcome]:
        """Encode each sample with the reply of the last one before it that is kept."""
        last = max((i for i, replies in enumerate(columns["_response"]) if _has_label(replies)), default=-1)
        kept: list[int] = []
        outcomes = []
        for i in range(len(columns["_prompt"])):
            outcomes.append(self._try(columns, i, kept[-1] if kept else last))
            if isinstance(outcomes[-1][1], list):
                kept.append(i)
        if kept and kept[-1] != last:  # the one that the first was encoded with is left out
            outcomes[kept[0]] = self._try(columns, kept[0], kept[-1])
        return outcomes

    def _try(self, columns: dict[str, list[Any]], i: int, other: int) -> _Outcome:
        account = DatasetAccount()
        try:
            return account, self._encode_both(columns, i, other, account)
        except SampleDropped as dropped:
            return account, dropped

    def _encode_samples(self, columns: dict[str, list[Any]], i: int, account: DatasetAccount) -> list[Sample]:
        if not self._outcomes:  # a sample by itself
            return self._encode_both(columns, i, i, account)
        own, outcome = self._outcomes[i]
        account.add(own.to_dict())
        if isinstance(outcome, SampleDropped):
            raise outcome
        return outcome

    def _encode_both(self, columns: dict[str, list[Any]], i: int, other: int, account: DatasetAccount) -> list[Sample]:
        """Encode a sample and its KL half as LLaMA-Factory does, cut to `cutoff_len`, their ids typed.

        Args:
            columns: Of the batch.
            i: The sample.
            other: The one whose reply the KL half has.
            account: Added to.

        Raises:
            SampleDropped: With the reason.
            ValueError: If it cannot be encoded, or a policy says ``error``; names the data set and the sample.
        """
        account.messages -= _has_label(columns["_response"][i])  # the empty one that LLaMA-Factory has added
        if len(columns["_prompt"][i]) % 2 != 1 or not _has_label(columns["_response"][i]):
            raise SampleDropped(NO_LABEL)
        kl_replies = self._replies_of(columns, other)
        source, index = columns[SOURCE_COLUMN][i], columns[INDEX_COLUMN][i]
        with errors_name(f"dataset {source!r}, sample {index}"):
            prompt, replies, *others = self._typed_columns(columns, i)
            whole = [
                Sample(conversation_of(prompt, _reply(given), "reply"), facts={"dataset": source, "index": index})
                for given in (replies, kl_replies)
            ]
            sample, kl_half = whole
            self._waiting = list(whole)
            encoded = self._encode_labelled(prompt, replies, kl_replies, *others)
            account.with_marker += sample.masked.has_marker
            self._check_marker([sample])
            front = self._front_ids(others[2:]) if any(others[2:]) else []
            prompt_cut = self._finish(sample, encoded[0], encoded[1], front)
            self._finish(kl_half, encoded[2], encoded[3], front)
            if sample.facts["marker_cut"]:
                account.cut_marker(index)
            self._check_media(whole, any(others[2:]), front)
            self._check_trained(sample)

        kl_half.facts["reply_of"] = columns[INDEX_COLUMN][other]
        kl_half.counted = len(kl_half.lengths)  # nobody has answered this prompt so
        if not kl_half.tokens.trained:
            account.notes[KL_UNTRAINED] += 1
        weighed = sum(message.get(WEIGHT_KEY) not in (None, 0, 1) for message in prompt)
        if weighed:
            account.notes[PROMPT_WEIGHTS] += weighed
        account.prompts_cut += prompt_cut > 0
        self._count([sample], account)
        return whole

    def _replies_of(self, columns: dict[str, list[Any]], i: int) -> list[dict[str, Any]]:
        """Return a sample's replies, typed; what is wrong with them is said of it, not of the sample whose KL half has them."""
        with errors_name(f"dataset {columns[SOURCE_COLUMN][i]!r}, sample {columns[INDEX_COLUMN][i]}"):
            prompt, replies, *_ = self._typed_columns(columns, i)
            conversation_of(prompt, _reply(replies), "reply")
            return replies

    def _encode_labelled(self, prompt: Any, replies: Any, kl_replies: Any, *others: Any) -> Any:
        try:
            return FeedbackDatasetProcessor._encode_data_example(self, prompt, replies, kl_replies, *others)
        except ValueError:
            if type(self.template.mm_plugin) is not BasePlugin:
                check_media_numbers([*prompt, *replies], others[2:])
            raise

    def _encode_data_example(self, *args: Any, **kwargs: Any) -> Any:
        """Answer LLaMA-Factory's loop over the samples that are kept."""
        return (*super()._encode_data_example(*args, **kwargs), bool(kwargs["response"][0]["content"]))


def _has_label(replies: Sequence[dict[str, Any]]) -> bool:
    """Whether LLaMA-Factory has told a reply desired from undesired, by an empty one behind it or before it."""
    return len(replies) == _REPLIES


def _reply(replies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the reply of the data, as LLaMA-Factory finds it."""
    return replies[0] if replies[0]["content"] else replies[1]
