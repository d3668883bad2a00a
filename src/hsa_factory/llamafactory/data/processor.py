"""LLaMA-Factory's supervised processors, plus `semantic_ids`, the loss mask and an account of every sample."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from llamafactory.data.mm_plugin import BasePlugin
from llamafactory.data.processor import PackedSupervisedDatasetProcessor, SupervisedDatasetProcessor

from ..._version import __version__
from ...config import FeedbackConfig, HSAConfig
from ...feedback import apply_loss_mask
from ...typed.ids import TypedTokenId, count_plain, fill_types, tags_of
from ...typed.spans import decode_spans
from ...typed.text import TypedText
from ...visible_text import show_hidden
from .aligned import (
    INDEX_COLUMN,
    MEDIA_COLUMNS,
    RULES_COLUMN,
    SOURCE_COLUMN,
    SPANS_KEY,
    SYSTEM_SPANS_COLUMN,
    SYSTEM_TYPE_COLUMN,
    TYPED_COLUMN,
)
from .loss_mask import DECIDING, MaskedPairs, mask_pairs
from .report import DatasetAccount, serialize_accounts
from .sample_errors import (
    INVALID,
    MEDIA_TOO_LONG,
    NO_MARKER,
    NOTHING_TO_TRAIN,
    TOO_LONG,
    SampleDropped,
    check_contents,
    check_media_numbers,
    errors_name,
)
from .sight import SeenTokens, Turns, common_end
from .template import TEXT_KEY, TYPE_KEY, Pairs, typed_template
from .token_table import ACCOUNT_COLUMN, LOSS_MASK_COLUMN, Tokens, TokenTable, padding_row, to_lists, to_table
from .truncation import (
    Counts,
    Cut,
    count_media,
    fit_labels,
    kept_lengths,
    media_token_ids,
    plan_cut,
)
from .turns import has_reply, has_turns, number_tokens
from .weighing import Weighing


if TYPE_CHECKING:
    from llamafactory.data.processor import SupervisedDatasetProcessor as MixedInto
else:
    MixedInto = object


@dataclass
class Sample:
    """The sample at work.

    Attributes:
        messages: Its messages, the system prompt not among them.
        media: Media of each turn, None if they are not tied to turns.
        masked: What feedback and weights keep out of the loss.
        whole_length: Tokens before truncation.
        pairs: What LLaMA-Factory is given to cut.
        cut: What the truncation leaves, None without media.
        lengths: Tokens of each prompt and response, before and then after the cut.
        in_front: Tokens that LLaMA-Factory puts before them.
        input_ids: What becomes of it, typed.
        tokens: The same with its labels, read off.
        facts: What the finished row says of it.
    """

    messages: list[dict[str, Any]]
    media: list[Counts] | None = None
    masked: MaskedPairs = MaskedPairs([], False, False, 0)
    whole_length: int = 0
    pairs: Pairs = field(default_factory=list)
    cut: Cut | None = None
    lengths: list[int] = field(default_factory=list)
    in_front: int = 0
    input_ids: list[TypedTokenId] = field(default_factory=list)
    tokens: Tokens = field(default_factory=Tokens.none)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class TypedProcessorMixin(MixedInto):
    """Encodes each sample with types first, decides what becomes of it, then lets LLaMA-Factory lay out the rows."""

    hsa_config: HSAConfig = field(default_factory=HSAConfig)
    feedback_config: FeedbackConfig | None = None
    version: str = __version__  # part of the cache's key: other versions may type or mask otherwise
    attention_config: HSAConfig | None = None  # the rules of the run's attention; None: no HSA
    as_table: bool = False  # an Arrow table, which `datasets` writes as it is
    media: dict[str, Any] = field(default_factory=dict)  # types of its media columns, by name
    has_weights: bool | None = None  # whether rows have weights; None: where some need them
    staying: frozenset[str] = frozenset()  # data sets whose samples stay though nothing of them is trained

    def __post_init__(self) -> None:
        self.template: Any = typed_template(self.template, self.hsa_config.default)
        self.template.on_pairs = self._decide
        self.media_ids = media_token_ids(self.template.mm_plugin, self.tokenizer)
        self.marker_id = None
        if self.feedback_config is not None:
            self.marker_id = self.tokenizer.convert_tokens_to_ids(self.feedback_config.token)
        # called with the whole sample, masked, before it is cut; returns what to go on with
        self.on_whole: Callable[[Pairs], Pairs] | None = None
        self.has_turns = has_turns(self.attention_config)
        self._sample = Sample([])
        self._places: Iterator[tuple[range, range]] | None = None

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]] | pa.Table:
        columns = {name: list(examples[name]) for name in examples.keys()}
        accounts: dict[str, DatasetAccount] = defaultdict(DatasetAccount)
        turns: dict[str, Turns] = defaultdict(Turns)
        table, kept, places = self._new_table(), [], []
        for i in range(len(columns["_prompt"])):
            account = accounts[columns[SOURCE_COLUMN][i]]
            account.samples += 1
            account.messages += len(columns["_prompt"][i]) + len(columns["_response"][i])
            account.typed_messages += columns[TYPED_COLUMN][i]
            if RULES_COLUMN in columns:
                account.add_rules(columns[RULES_COLUMN][i])
            try:
                sample = self._encode_sample(columns, i, account)
                if self.attention_config is not None:
                    turns[columns[SOURCE_COLUMN][i]].add(len(table.token_ids) + sample.in_front, sample.lengths)
                places.append(table.add(sample.tokens, sample.facts))
                kept.append(i)
            except SampleDropped as dropped:
                account.drop(str(dropped), columns[INDEX_COLUMN][i])

        if self.attention_config is not None:
            seen = SeenTokens(*table.arrays(), self.attention_config, self.media_ids, self.marker_id)
            for source, places_of in turns.items():
                accounts[source].add_sight(*seen.count(places_of.exchanges(seen.token_ids, self._opening)))

        self._places = iter(places)
        try:
            rows = super().preprocess_dataset({name: [column[i] for i in kept] for name, column in columns.items()})
        finally:
            self._places = None
        return self._finish_rows(rows, table, accounts)

    def _encode_data_example(self, *args: Any, **kwargs: Any) -> tuple[Sequence[int], Sequence[int]]:
        if self._places is not None:  # LLaMA-Factory's loop over the samples that are kept, in the same order
            return next(self._places)
        return super()._encode_data_example(*args, **kwargs)

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
            if any(media) and not self._media_stand_in_front(media):
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
        stays = source in self.staying and not sample.masked.is_masked
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

    def _typed_columns(self, columns: dict[str, list[Any]], i: int) -> list[Any]:
        """Return what LLaMA-Factory encodes of a sample, its texts typed: from the prompt's messages to the audios."""
        check_contents([*columns["_prompt"][i], *columns["_response"][i]])
        prompt, response = map(_with_typed_content, (columns["_prompt"][i], columns["_response"][i]))
        system = columns["_system"][i]
        if system:
            system = TypedText(system, columns[SYSTEM_TYPE_COLUMN][i], decode_spans(columns[SYSTEM_SPANS_COLUMN][i]))
        return [
            prompt,
            response,
            system,
            columns["_tools"][i],
            *(list(columns[name][i] or []) for name in MEDIA_COLUMNS),
        ]

    def _encode_uncached(self, *args: Any) -> tuple[list[Any], list[int]]:
        try:
            return super()._encode_data_example(*args)
        except ValueError:
            prompt, response, _, _, *media = args
            if type(self.template.mm_plugin) is not BasePlugin:  # to text models a placeholder is a text like others
                check_media_numbers([*prompt, *response], media)
            raise

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

    @cached_property
    def _opening(self) -> list[int]:
        """What the template puts between a message and its reply."""
        template = copy(self.template)
        template.on_pairs = None
        texts = zip(("user", "assistant") * 2, "xxyy")
        pairs = template.encode_multiturn(self.tokenizer, [{"role": role, "content": text} for role, text in texts])
        return common_end(pairs[0][0], pairs[1][0])

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

    def _media_stand_in_front(self, media: list[list[Any]]) -> bool:
        """Whether a plugin puts all media before the conversation (PaliGemma): turns then hold none."""
        ids, _ = self.template.mm_plugin.process_token_ids([], [], *media, self.tokenizer, self.processor)
        return bool(ids)

    def _new_table(self) -> TokenTable:
        is_packed = isinstance(self, PackedSupervisedDatasetProcessor)
        return TokenTable(self.has_turns, is_packed and not self.data_args.neat_packing, self.has_weights)

    def _finish_rows(self, rows: dict[str, list[Any]], table: TokenTable, accounts: dict[str, DatasetAccount]) -> Any:
        """Look up what the rows are made of, and append one that carries the accounts through map and cache."""
        number = len(rows["input_ids"])
        is_packed = isinstance(self, PackedSupervisedDatasetProcessor)
        last = padding_row(is_packed, is_packed and self.data_args.neat_packing)
        columns = table.look_up({name: [*rows[name], last.get(name)] for name in dict.fromkeys([*rows, *last])})
        columns[ACCOUNT_COLUMN] = [None] * number + [serialize_accounts(accounts)]
        return to_table(columns, self.media) if self.as_table else to_lists(columns)

    def print_data_example(self, example: dict[str, Any]) -> None:
        if example.get(ACCOUNT_COLUMN) is not None:
            return
        if example.get(LOSS_MASK_COLUMN) is not None:  # as the collator will hand them to the model
            example = {**example, "labels": apply_loss_mask(example["labels"], example[LOSS_MASK_COLUMN])}
        with redirect_stdout(StringIO()) as printed:
            super().print_data_example(example)
        print(show_hidden(printed.getvalue()), end="")


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
