"""LLaMA-Factory's supervised processors, plus `semantic_ids`, the loss mask and an account of every sample."""

import json
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from llamafactory.data.processor.supervised import (
    MAX_SU_SEQ_IDX,
    PackedSupervisedDatasetProcessor,
    SupervisedDatasetProcessor,
)

from .. import __version__
from ..config import FeedbackConfig, HSAConfig
from ..feedback import IGNORE_INDEX, apply_loss_mask
from ..labeling.token_ids import (
    count_trained,
    count_types,
    fill_types,
    flatten,
    loss_mask_of,
    plain_ids,
    semantic_ids_of,
    sources_of,
    tag_id,
    tags_of,
)
from ..labeling.typed_text import TypedText
from ..semantics import SemanticType
from .converter import (
    INDEX_COLUMN,
    RULES_COLUMN,
    SOURCE_COLUMN,
    SPANS_KEY,
    SYSTEM_SPANS_COLUMN,
    SYSTEM_TYPE_COLUMN,
    TYPED_COLUMN,
    decode_spans,
)
from .masking import DECIDING, MaskedPairs, mask_pairs
from .media import count_media, media_token_ids, plan_cut
from .report import DatasetAccount, serialize_accounts
from .template import TEXT_KEY, TYPE_KEY, Pairs, typed_template


SEMANTIC_COLUMN = "semantic_ids"
LOSS_MASK_COLUMN = "loss_mask"
ROW_SOURCE_COLUMN = "hsa_dataset"
ROW_SAMPLES_COLUMN = "hsa_samples"  # where each sample of a row starts, and what the cut took from it, as JSON
ACCOUNT_COLUMN = "hsa_account"
MEDIA_COLUMNS = ("_images", "_videos", "_audios")
_ARRAY_COLUMNS = {
    "input_ids": np.int32,
    "attention_mask": np.int32,
    "position_ids": np.int32,
    "labels": np.int32,
    SEMANTIC_COLUMN: np.int8,
    LOSS_MASK_COLUMN: np.int8,
}

INVALID = "invalid conversation (empty, or roles in a wrong order)"
NO_MARKER = "no feedback marker"
NOTHING_TO_TRAIN = "nothing left to train"
MEDIA_TOO_LONG = "media do not fit into cutoff_len"
TOO_LONG = "longer than cutoff_len"


class SampleDropped(Exception):
    """A sample is left out; the argument is the reason."""


@dataclass
class Sample:
    """The sample at work.

    Attributes:
        messages: Its messages, the system prompt not among them.
        media: Media of each turn, None if they are not tied to turns.
        masked: What feedback and weights keep out of the loss.
        whole_length: Tokens before truncation.
        cut: What the truncation leaves, None without media.
        facts: What the finished row says of it.
    """

    messages: list[dict[str, Any]]
    media: list | None = None
    masked: MaskedPairs | None = None
    whole_length: int = 0
    cut: Any = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class TypedProcessorMixin:
    """Encodes each sample with types first, decides what becomes of it, then lets LLaMA-Factory lay out the rows."""

    hsa_config: HSAConfig = field(default_factory=HSAConfig)
    feedback_config: FeedbackConfig | None = None
    version: str = __version__  # part of the cache's key: other versions may type or mask otherwise
    as_arrays: bool = False  # numpy rows, which `datasets` writes several times faster than lists

    def __post_init__(self) -> None:
        self.template = typed_template(self.template, SemanticType.parse(self.hsa_config.default_type))
        self.template.on_pairs = self._decide
        self.media_ids = media_token_ids(self.template.mm_plugin, self.tokenizer)
        self.marker_id = None
        if self.feedback_config is not None:
            self.marker_id = self.tokenizer.convert_tokens_to_ids(self.feedback_config.token)
        self.on_whole = None  # called with the whole sample, masked, before it is cut; returns what to go on with
        self._sample = Sample([])
        self._encoded: deque = deque()

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns = {name: list(examples[name]) for name in examples.keys()}
        accounts: dict[str, DatasetAccount] = defaultdict(DatasetAccount)
        kept = []
        for i in range(len(columns["_prompt"])):
            account = accounts[columns[SOURCE_COLUMN][i]]
            account.samples += 1
            account.messages += len(columns["_prompt"][i]) + len(columns["_response"][i])
            account.typed_messages += columns[TYPED_COLUMN][i]
            if RULES_COLUMN in columns:
                account.add_rules(columns[RULES_COLUMN][i])
            try:
                input_ids, labels = self._encode_sample(columns, i, account)
                self._encoded.append(([tag_id(input_ids[0], self._sample.facts), *input_ids[1:]], labels))
                kept.append(i)
            except SampleDropped as dropped:
                account.drop(str(dropped), columns[INDEX_COLUMN][i])

        rows = super().preprocess_dataset({name: [column[i] for i in kept] for name, column in columns.items()})
        self._encoded.clear()
        return self._finish_rows(rows, accounts)

    def _encode_data_example(self, *args: Any, **kwargs: Any) -> tuple[list[int], list[int]]:
        if self._encoded:  # LLaMA-Factory's loop over the samples that are kept, in the same order
            return self._encoded.popleft()
        return super()._encode_data_example(*args, **kwargs)

    def _encode_sample(
        self, columns: dict[str, list[Any]], i: int, account: DatasetAccount
    ) -> tuple[list[int], list[int]]:
        """Encode one sample as LLaMA-Factory does, cut to `cutoff_len`, its ids typed.

        Raises:
            SampleDropped: With the reason.
            ValueError: If it cannot be encoded, or a policy says ``error``; names the data set and the sample.
        """
        prompt, response, system, tools, *media = self._typed_columns(columns, i)
        if len(prompt) % 2 != 1 or len(response) != 1:
            raise SampleDropped(INVALID)

        source = self.template.source
        where = f"dataset {source!r}, sample {columns[INDEX_COLUMN][i]}"
        self._sample = sample = Sample(prompt + response)
        try:
            if any(media) and not self._media_stand_in_front(media):
                sample.media = count_media(prompt + response)
            input_ids, labels = self._encode_uncached(prompt, response, system, tools, *media)
        except SampleDropped:
            raise
        except Exception as error:
            raise ValueError(f"{where}: {error}") from error

        marker_is_cut = False
        if sample.masked.deciding:
            marker_is_cut = sum(tag == DECIDING for _, tag in tags_of(input_ids)) < sample.masked.deciding
        account.with_marker += sample.masked.has_marker
        if marker_is_cut:
            account.cut_marker(columns[INDEX_COLUMN][i])
        if all(type(token) is int for token in input_ids):  # nothing of it is left, at most an EOS
            raise SampleDropped(NOTHING_TO_TRAIN)

        cut_away = sample.whole_length - len(input_ids) + list(map(type, input_ids)).count(int)
        if type(input_ids[0]) is int or type(input_ids[-1]) is int:  # media in front, an EOS behind
            input_ids = fill_types(input_ids)
        trained = self._count_trained(input_ids, labels)
        if trained == 0:
            if self.feedback_config is not None and self.feedback_config.empty == "error":
                raise ValueError(f"{where}: nothing is left to train (feedback.empty is 'error').")
            raise SampleDropped(NOTHING_TO_TRAIN)
        if isinstance(self, PackedSupervisedDatasetProcessor) and len(input_ids) > self.data_args.cutoff_len:
            raise SampleDropped(TOO_LONG)

        self._trim_media(columns, i, media)
        account.kept += 1
        account.tokens.update(count_types(input_ids))
        account.trained_tokens += trained
        if sample.cut is not None and sample.cut.turns_removed:
            account.turns_removed += 1
        elif cut_away:
            account.text_truncated += 1

        sample.facts = {"dataset": source, "index": columns[INDEX_COLUMN][i]}
        sample.facts |= {"cut": cut_away, "marker_cut": marker_is_cut}
        return input_ids, labels

    def _typed_columns(self, columns: dict[str, list[Any]], i: int) -> list[Any]:
        """Return what LLaMA-Factory encodes of a sample, its texts typed: from the prompt's messages to the audios."""
        prompt, response = map(_with_typed_content, (columns["_prompt"][i], columns["_response"][i]))
        system = columns["_system"][i]
        if system:
            system = TypedText(system, columns[SYSTEM_TYPE_COLUMN][i], decode_spans(columns[SYSTEM_SPANS_COLUMN][i]))
        self.template.source = columns[SOURCE_COLUMN][i]
        return [
            prompt,
            response,
            system,
            columns["_tools"][i],
            *(list(columns[name][i] or []) for name in MEDIA_COLUMNS),
        ]

    def _encode_uncached(self, *args: Any) -> tuple[list[int], list[int]]:
        return super()._encode_data_example(*args)

    def _decide(self, pairs: Pairs) -> Pairs:
        """Look at the whole sample before it is cut: what is trained of it, and which turns can stay."""
        sample = self._sample
        sample.whole_length = len(flatten(pairs))
        feedback = self.feedback_config
        masked = mask_pairs(
            pairs,
            sample.messages,
            self.marker_id,
            feedback,
            eos_follows=self.template.efficient_eos and not self.data_args.train_on_prompt,
            train_on_prompt=self.data_args.train_on_prompt,
        )
        sample.masked, pairs = masked, masked.pairs
        if self.on_whole is not None:
            pairs = self.on_whole(pairs)
        if feedback is not None and not masked.has_marker and feedback.missing != "train":
            if feedback.missing == "error":
                where = f" in a message of role {feedback.scope!r}" if feedback.scope else ""
                raise ValueError(f"it has no {feedback.token}{where} (feedback.missing is 'error').")
            raise SampleDropped(NO_MARKER)

        if sample.media is not None and sum(map(sum, sample.media)):
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

        return pairs

    def _count_trained(self, input_ids: list[Any], labels: list[int]) -> int:
        if not self._sample.masked.is_masked:
            return len(labels) - labels.count(IGNORE_INDEX)
        if self.template.efficient_eos:  # has labels that are not ids of the same place
            return sum(label != IGNORE_INDEX and token.trained for label, token in zip(labels, input_ids))
        return count_trained(labels)

    def _trim_media(self, columns: dict[str, list[Any]], i: int, media: list[list[Any]]) -> None:
        """Leave only the media whose turns remain, so that they match the ids."""
        cut, counts = self._sample.cut, self._sample.media
        if cut is None:
            return

        for kind, name in enumerate(MEDIA_COLUMNS):
            before = sum(turn[kind] for turn in counts[: cut.first])
            number = sum(turn[kind] for turn in counts[cut.first : cut.stop])
            columns[name][i] = media[kind][before : before + number] or None

    def _media_stand_in_front(self, media: list[list[Any]]) -> bool:
        """Whether a plugin puts all media before the conversation (PaliGemma): turns then hold none."""
        ids, _ = self.template.mm_plugin.process_token_ids([], [], *media, self.tokenizer, self.processor)
        return bool(ids)

    def _finish_rows(self, rows: dict[str, list[Any]], accounts: dict[str, DatasetAccount]) -> dict[str, list[Any]]:
        """Read the types off the finished ids, and append a row that carries the accounts through map and cache."""
        typed_rows = list(rows["input_ids"])
        rows["input_ids"] = [plain_ids(ids) for ids in typed_rows]
        rows["labels"] = [plain_ids(labels) for labels in rows["labels"]]
        rows[SEMANTIC_COLUMN] = [semantic_ids_of(ids) for ids in typed_rows]
        rows[ROW_SOURCE_COLUMN] = [", ".join(sources_of(ids)) for ids in typed_rows]
        rows[ROW_SAMPLES_COLUMN] = [_samples_of(ids) for ids in typed_rows]
        rows[LOSS_MASK_COLUMN] = self._loss_masks(typed_rows, rows["labels"])

        account_row = self._account_row()
        for name in account_row.keys() | rows.keys():
            rows[name].append(account_row.get(name))
        rows[ACCOUNT_COLUMN] = [None] * len(typed_rows) + [serialize_accounts(accounts)]
        for name, dtype in _ARRAY_COLUMNS.items():
            if name in rows:
                arrays = [np.asarray(values, dtype) for values in rows[name]]
                rows[name] = arrays if self.as_arrays else [values.tolist() for values in arrays]
        return dict(rows)

    def _loss_masks(self, typed_rows: list[list[int]], labels: list[np.ndarray]) -> list[np.ndarray]:
        return [loss_mask_of(ids) for ids in typed_rows]

    def _account_row(self) -> dict[str, Any]:
        """Return a row that stands for no sample: one padding token, so that column types can be inferred from it."""
        row = {
            "input_ids": [0],
            "attention_mask": [0],
            "labels": [IGNORE_INDEX],
            "images": None,
            "videos": None,
            "audios": None,
            SEMANTIC_COLUMN: [int(SemanticType.NOISE)],
            LOSS_MASK_COLUMN: [0],
            ROW_SOURCE_COLUMN: "",
            ROW_SAMPLES_COLUMN: "[]",
        }
        if isinstance(self, PackedSupervisedDatasetProcessor):
            row["position_ids"] = [0]
            if self.data_args.neat_packing:
                unused = {f"{kind}_subseq_ids": [MAX_SU_SEQ_IDX] for kind in ("image", "video", "audio")}
                row["packing_params"] = {"sequence_boundaries": [0, 1], **unused, "right_padding_length": 0}
        return row

    def print_data_example(self, example: dict[str, Any]) -> None:
        if example.get(ACCOUNT_COLUMN) is not None:
            return
        if example.get(LOSS_MASK_COLUMN) is not None:  # as the collator will hand them to the model
            example = {**example, "labels": apply_loss_mask(example["labels"], example[LOSS_MASK_COLUMN])}
        super().print_data_example(example)


@dataclass
class TypedSupervisedProcessor(TypedProcessorMixin, SupervisedDatasetProcessor):
    """One row a sample."""


@dataclass
class TypedPackedProcessor(TypedProcessorMixin, PackedSupervisedDatasetProcessor):
    """Rows packed to `cutoff_len`."""


def _with_typed_content(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give the messages that have parts of several types a content that knows them, and a copy for comparison."""
    typed = []
    for message in messages:
        if message.get(SPANS_KEY):
            content = TypedText(message["content"], message[TYPE_KEY], decode_spans(message[SPANS_KEY]))
            message = {**message, "content": content, TEXT_KEY: content}
        typed.append(message)
    return typed


def _samples_of(ids: list[Any]) -> str:
    """Write down the samples of a row, from the tags of their first ids."""
    return json.dumps([{"start": place, **tag} for place, tag in tags_of(ids) if isinstance(tag, dict)])
