"""LLaMA-Factory's supervised processors, plus `semantic_ids`, the loss mask and an account of every sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llamafactory.data.processor import PackedSupervisedDatasetProcessor, SupervisedDatasetProcessor

from ...typed.ids import count_plain, fill_types, tags_of
from .aligned import INDEX_COLUMN, MEDIA_COLUMNS, SOURCE_COLUMN
from .loss_mask import DECIDING, mask_pairs
from .report import DatasetAccount
from .sample_errors import INVALID, MEDIA_TOO_LONG, NO_MARKER, NOTHING_TO_TRAIN, TOO_LONG, SampleDropped, errors_name
from .template import Pairs
from .token_table import Tokens
from .truncation import count_media, fit_labels, kept_lengths, plan_cut
from .turns import has_reply, number_tokens
from .typed_processor import Sample, TypedProcessorMixin
from .weighing import Weighing


@dataclass
class _SupervisedMixin(TypedProcessorMixin):
    """Whole conversations, of which every reply may be trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.template.on_pairs = self._decide

    def _encode_sample(self, columns: dict[str, list[Any]], i: int, account: DatasetAccount) -> Sample:
        """Encode one sample as LLaMA-Factory does, cut to `cutoff_len`, its ids typed.

        Raises:
            SampleDropped: With the reason.
            ValueError: If it cannot be encoded, or a policy says ``error``; names the data set and the sample.
        """
        source, index = columns[SOURCE_COLUMN][i], columns[INDEX_COLUMN][i]
        where = f"dataset {source!r}, sample {index}"
        with errors_name(where):
            prompt, response, system, tools, *media = self._typed_columns(columns, i)
            if len(prompt) % 2 != 1 or len(response) != 1:
                raise SampleDropped(INVALID)
            self._sample = sample = Sample(prompt + response)
            if any(media) and not self._front_ids(media):
                sample.media = count_media(prompt + response)
            input_ids, labels = self._encode_uncached(prompt, response, system, tools, *media)

        added = 0  # by LLaMA-Factory: media in front, an EOS behind
        if input_ids and (type(input_ids[0]) is int or type(input_ids[-1]) is int):
            added = count_plain(input_ids)
        surplus = len(labels) - len(input_ids)
        if surplus:
            labels = self._fit_labels(labels, added)
        cut_away = sample.whole_length + added - len(input_ids)
        deciding = sample.masked.deciding if cut_away else 0
        marker_is_cut = deciding > 0 and tags_of(input_ids).count(DECIDING) < deciding
        account.with_marker += sample.masked.has_marker
        if marker_is_cut:
            account.cut_marker(index)
        stays = self._may_stay(source, [sample])
        if added == len(input_ids) and not (stays and added):
            raise SampleDropped(NOTHING_TO_TRAIN)

        sample.input_ids = fill_types(input_ids, int(self.hsa_config.default)) if added else input_ids
        sample.tokens = Tokens.read(sample.input_ids, labels, sample.masked.is_weighed)
        trained = sample.tokens.trained
        if trained == 0:
            if self.feedback_config is not None and self.feedback_config.empty == "error":
                raise ValueError(f"{where}: nothing is left to train (feedback.empty is 'error').")
            if not stays:
                raise SampleDropped(NOTHING_TO_TRAIN)
            account.untrained += 1
        if isinstance(self, PackedSupervisedDatasetProcessor) and len(input_ids) > self.data_args.cutoff_len:
            raise SampleDropped(TOO_LONG)

        self._trim_media(columns, i, media)
        account.keep(sample.tokens.semantic_ids, trained, *sample.tokens.weighed)
        account.guessed_messages += self.template.guessed
        account.lost_call_parts += self.template.lost_parts
        account.filled_tokens += self.template.filled + added
        account.untrained_stops += surplus
        if sample.cut is not None and sample.cut.turns_removed:
            account.turns_removed += 1
        elif cut_away:
            account.text_truncated += 1

        first = sample.cut.first if sample.cut is not None and sample.cut.turns_removed else 0
        if cut_away:
            kept = sorted(kept_lengths(sample.pairs, added, self.data_args.cutoff_len, self.data_args.mask_history))
            sample.lengths = [length for _, *lengths in kept for length in lengths]
            first += kept[0][0] if kept else 0
        sample.in_front = added - self.template.efficient_eos
        if self.has_turns:
            account.without_reply += not has_reply(sample.messages)
            around = (sample.in_front, added - sample.in_front)
            sample.tokens.turn_ids = number_tokens(sample.messages, 2 * first, sample.lengths, *around)
        sample.facts = {"dataset": source, "index": index, "cut": cut_away, "marker_cut": marker_is_cut}
        return sample

    def _decide(self, pairs: Pairs) -> Pairs:
        """Look at the whole sample before it is cut: what is trained of it, and which turns can stay."""
        sample = self._sample
        sample.whole_length = sum(len(prompt_ids) + len(response_ids) for prompt_ids, response_ids in pairs)
        feedback = self.feedback_config
        masked = mask_pairs(
            pairs,
            sample.messages,
            self.marker_id,
            feedback,
            eos_follows=self.template.efficient_eos and not self.data_args.train_on_prompt,
            train_on_prompt=self.data_args.train_on_prompt,
            weighing=Weighing(self.template.system_length, self.media_ids, self.data_args.mask_history),
        )
        sample.masked, pairs = masked, masked.pairs
        if self.on_whole is not None:
            pairs = self.on_whole(pairs)
        if feedback is not None and not masked.has_marker and feedback.missing != "train":
            if feedback.missing == "error":
                where = f" in a message of role {feedback.scope!r}" if feedback.scope else ""
                raise ValueError(f"it has no {feedback.token}{where} (feedback.missing is 'error').")
            raise SampleDropped(NO_MARKER)

        if sample.media is not None and any(map(any, sample.media)):
            start_length = 1 if self.template.efficient_eos else 0
            sample.cut = plan_cut(
                pairs,
                sample.media,
                self.media_ids,
                start_length,
                self.data_args.cutoff_len,
                self.data_args.mask_history,
            )
            if sample.cut.turns_removed:
                pairs = pairs[sample.cut.first : sample.cut.stop]
                if not pairs:
                    raise SampleDropped(MEDIA_TOO_LONG)

        sample.lengths = [len(ids) for pair in pairs for ids in pair]
        sample.pairs = pairs
        return pairs

    def _fit_labels(self, labels: Sequence[int], added: int) -> list[int]:
        """Take out the labels that stand at no id.

        Args:
            labels: LLaMA-Factory's.
            added: Ids that it has added: media in front, and one EOS behind.
        """
        mask_history = self.data_args.mask_history
        kept = kept_lengths(self._sample.pairs, added, self.data_args.cutoff_len, mask_history)
        return fit_labels(labels, list(kept), added - 1, mask_history)

    def _trim_media(self, columns: dict[str, list[Any]], i: int, media: list[list[Any]]) -> None:
        """Leave only the media whose turns remain, so that they match the ids."""
        cut, counts = self._sample.cut, self._sample.media
        if cut is None or counts is None:
            return

        for kind, name in enumerate(MEDIA_COLUMNS):
            before = sum(turn[kind] for turn in counts[: cut.first])
            number = sum(turn[kind] for turn in counts[cut.first : cut.stop])
            columns[name][i] = media[kind][before : before + number] or None


@dataclass
class TypedSupervisedProcessor(_SupervisedMixin, SupervisedDatasetProcessor):
    """One row a sample."""


@dataclass
class TypedPackedProcessor(_SupervisedMixin, PackedSupervisedDatasetProcessor):
    """Rows packed to `cutoff_len`."""
