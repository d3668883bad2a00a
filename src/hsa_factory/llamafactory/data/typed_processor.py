"""What all typed processors share: samples are encoded with types first, then LLaMA-Factory lays out the rows."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from llamafactory.data.mm_plugin import BasePlugin
from llamafactory.data.processor import PackedSupervisedDatasetProcessor

from ..._version import __version__
from ...config import FeedbackConfig, HSAConfig
from ...feedback import apply_loss_mask
from ...typed.ids import TypedTokenId
from ...typed.spans import decode_spans
from ...typed.text import TypedText
from ...visible_text import show_hidden
from .accounts import ACCOUNT_COLUMN, account_column, is_account_alone
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
from .loss_mask import MaskedPairs
from .report import DatasetAccount, serialize_accounts
from .sample_errors import SampleDropped, check_contents, check_media_numbers
from .sight import SeenTokens, Turns, common_end
from .template import TEXT_KEY, TYPE_KEY, Pairs, typed_template
from .text_encoder import known_texts
from .token_table import LOSS_MASK_COLUMN, Tokens, TokenTable, padding_row, to_lists, to_table
from .truncation import Counts, Cut, media_token_ids
from .turns import has_turns


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
        whole_media: Tokens among them that stand for media or enclose them.
        counts: How many of its messages are guessed, parts of tool calls lost, and ids filled, as the template says.
        counted: How many of its first `lengths` another row of the same sample has, too: what replies see there is
            counted with that one.
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
    whole_media: int = 0
    counts: tuple[int, int, int] = (0, 0, 0)
    counted: int = 0


@dataclass
class TypedProcessorMixin(MixedInto):
    """Encodes each sample with types first, decides what becomes of it, then lets LLaMA-Factory lay out the rows.

    A processor says in `_encode_samples` what a sample becomes. LLaMA-Factory's own loop over the samples that are kept then
    gets, from `_encode_data_example`, the places of their tokens in a table.

    Attributes:
        prefixes: What the columns of each sequence in a row begin with, in the order of `_encode_samples`.
    """

    prefixes: ClassVar[tuple[str, ...]] = ("",)

    hsa_config: HSAConfig = field(default_factory=HSAConfig)
    feedback_config: FeedbackConfig | None = None
    version: str = f"{__version__}-2"  # part of the cache's key: others may type, mask or lay out otherwise
    attention_config: HSAConfig | None = None  # the rules of the run's attention; None: no HSA
    as_table: bool = False  # an Arrow table, which `datasets` writes as it is
    media: dict[str, Any] = field(default_factory=dict)  # types of its media columns, by name
    has_weights: bool | None = None  # whether rows have weights; None: where some need them
    staying: frozenset[str] = frozenset()  # data sets whose samples stay though nothing of them is trained

    def __post_init__(self) -> None:
        self.template: Any = typed_template(self.template, self.hsa_config.default)
        self.media_ids = media_token_ids(self.template.mm_plugin, self.tokenizer)
        self.marker_id = None
        if self.feedback_config is not None:
            self.marker_id = self.tokenizer.convert_tokens_to_ids(self.feedback_config.token)
        # called with the whole sample, masked, before it is cut; returns what to go on with
        self.on_whole: Callable[[Pairs], Pairs] | None = None
        self.has_turns = has_turns(self.attention_config)
        self._sample = Sample([])
        self._places: Iterator[list[range]] | None = None

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]] | pa.Table:
        columns = {name: list(examples[name]) for name in examples.keys()}
        accounts: dict[str, DatasetAccount] = defaultdict(DatasetAccount)
        turns: dict[str, Turns] = defaultdict(Turns)
        table, kept = self._new_table(), []
        places: list[list[range]] = []
        for i in range(len(columns["_prompt"])):
            account = accounts[columns[SOURCE_COLUMN][i]]
            account.samples += 1
            account.messages += len(columns["_prompt"][i]) + len(columns["_response"][i])
            account.typed_messages += columns[TYPED_COLUMN][i]
            if RULES_COLUMN in columns:
                account.add_rules(columns[RULES_COLUMN][i])
            try:
                samples = self._encode_samples(columns, i, account)
            except SampleDropped as dropped:
                account.drop(str(dropped), columns[INDEX_COLUMN][i])
                continue
            kept.append(i)
            places.append([])
            for sample in samples:
                if self.attention_config is not None:
                    shared, lengths = sample.lengths[: sample.counted], sample.lengths[sample.counted :]
                    start = len(table.token_ids) + sample.in_front + sum(shared)
                    turns[columns[SOURCE_COLUMN][i]].add(start, lengths)
                places[-1] += table.add(sample.tokens, sample.facts)

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

    @property
    def inspected(self) -> tuple[str, ...]:
        """Those of `prefixes` whose sequences are the sample's own, which is what `inspect` shows."""
        return self.prefixes

    def _encode_data_example(self, *args: Any, **kwargs: Any) -> Any:
        if self._places is not None:  # LLaMA-Factory's loop over the samples that are kept, in the same order
            return next(self._places)
        return super()._encode_data_example(*args, **kwargs)

    def _encode_samples(self, columns: dict[str, list[Any]], i: int, account: DatasetAccount) -> list[Sample]:
        """Encode one sample; return what it becomes, one for each of `prefixes`. Raises as `_encode_sample`."""
        return [self._encode_sample(columns, i, account)]

    def _encode_sample(self, columns: dict[str, list[Any]], i: int, account: DatasetAccount) -> Sample:
        """Encode a sample that becomes one sequence, cut to `cutoff_len`, its ids typed.

        Raises:
            SampleDropped: With the reason.
            ValueError: If it cannot be encoded, or a policy says ``error``; names the data set and the sample.
        """
        raise NotImplementedError

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

    @cached_property
    def _opening(self) -> list[int]:
        """What the template puts between a message and its reply."""
        template = copy(self.template)
        template.on_pairs = None
        first, second = known_texts(self.tokenizer)
        texts = zip(("user", "assistant") * 2, (first, first, second, second))
        pairs = template.encode_multiturn(self.tokenizer, [{"role": role, "content": text} for role, text in texts])
        return common_end(pairs[0][0], pairs[1][0])

    def _may_stay(self, source: str, samples: Sequence[Sample]) -> bool:
        """Whether samples of a data set stay though nothing of them is trained: if LLaMA-Factory itself leaves nothing."""
        return source in self.staying and not any(sample.masked.is_masked for sample in samples)

    def _front_ids(self, media: list[list[Any]]) -> list[int]:
        """Return the ids by which a plugin puts all media before the conversation (PaliGemma): turns then hold none."""
        ids, _ = self.template.mm_plugin.process_token_ids([], [], *media, self.tokenizer, self.processor)
        return ids

    def _count_media_tokens(self, token_ids: Iterable[int]) -> int:
        return sum(token in self.media_ids for token in token_ids)

    def _new_table(self) -> TokenTable:
        is_packed = isinstance(self, PackedSupervisedDatasetProcessor)
        is_neat = is_packed and self.data_args.neat_packing
        return TokenTable(self.has_turns, is_packed and not is_neat, self.has_weights, numbers_samples=is_neat)

    def _finish_rows(self, rows: dict[str, list[Any]], table: TokenTable, accounts: dict[str, DatasetAccount]) -> Any:
        """Look up what the rows are made of, and let the first carry the accounts through map and cache."""
        number = len(rows[f"{self.prefixes[0]}input_ids"])
        is_packed = isinstance(self, PackedSupervisedDatasetProcessor)
        padding = padding_row(is_packed, is_packed and self.data_args.neat_packing, self.prefixes)
        names = dict.fromkeys([*rows, *padding])
        rows = {name: rows.get(name, [None] * number) if number else [padding.get(name)] for name in names}
        columns = table.look_up(rows, self.prefixes)
        columns[ACCOUNT_COLUMN] = account_column(serialize_accounts(accounts), number)
        return to_table(columns, self.media) if self.as_table else to_lists(columns)

    def print_data_example(self, example: dict[str, Any]) -> None:
        if is_account_alone(example.get(ACCOUNT_COLUMN)):
            return
        for prefix in self.prefixes:  # labels as the collator will hand them to the model
            labels, loss_mask = f"{prefix}labels", example.get(f"{prefix}{LOSS_MASK_COLUMN}")
            if loss_mask is not None:
                example = {**example, labels: apply_loss_mask(example[labels], loss_mask)}
        with redirect_stdout(StringIO()) as printed:
            super().print_data_example(example)
        print(show_hidden(printed.getvalue()), end="")


def _with_typed_content(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give the messages that have parts of several types a content that knows them, and a copy for comparison."""
    typed = []
    for message in messages:
        if message.get(SPANS_KEY):
            content = TypedText(message["content"], message[TYPE_KEY], decode_spans(message[SPANS_KEY]))
            message = {**message, "content": content, TEXT_KEY: content}
        typed.append(message)
    return typed
