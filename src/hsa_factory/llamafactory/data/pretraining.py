"""LLaMA-Factory's processor of raw text (stage `pt`), plus the type of each token and what feedback keeps out of the loss."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import pyarrow as pa
from llamafactory.data.processor import PretrainDatasetProcessor

from ...feedback import EncodedMessage, deciding_markers, find_markers, untrained_spans
from ...typed.ids import TypedTokenId, count_plain, fill_types, mark_untrained
from ...typed.spans import decode_spans
from ...typed.text import TypedText
from ...visible_text import show_hidden
from .accounts import ACCOUNT_COLUMN, account_column, is_account_alone
from .aligned import INDEX_COLUMN, RULES_COLUMN, SOURCE_COLUMN, SPANS_KEY, TYPED_COLUMN
from .pretrain_rows import EMPTY_BLOCK, SEEN_ACROSS, RawText, count_rows, join, locate, make_columns
from .report import DatasetAccount, serialize_accounts
from .sample_errors import INVALID, NO_MARKER, NOTHING_TO_TRAIN, SampleDropped, check_contents, errors_name
from .template import TYPE_KEY, WEIGHT_KEY
from .text_tokenizer import TypedTextTokenizer
from .token_table import to_lists, to_table
from .typed_processor import TypedProcessorMixin


UNREAD = "messages that stage pt does not read: the first of a conversation is its text"
Accounts = dict[str, DatasetAccount]


@dataclass
class TypedPretrainProcessor(TypedProcessorMixin, PretrainDatasetProcessor):
    """Rows as LLaMA-Factory makes them: a text each, cut to `cutoff_len`, or with `packing` blocks of that length.

    Feedback decides on the whole text, as on the reply of a conversation. A text in which it leaves nothing to train is left
    out before blocks are made, and so is a block.
    """

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]] | pa.Table:
        columns = {name: list(examples[name]) for name in examples.keys()}
        accounts: Accounts = defaultdict(DatasetAccount)
        texts = list(self._read_all(columns, accounts))
        chosen: list[RawText] = []

        def choose(ids: list[list[TypedTokenId]]) -> tuple[list[list[TypedTokenId]], list[int]]:
            marked = [self._mark(text, token_ids, accounts[text.source]) for text, token_ids in zip(texts, ids)]
            places = [place for place, left in enumerate(marked) if left is not None]
            chosen.extend(texts[place] for place in places)
            return [left for left in marked if left is not None], places

        stock: Any = self.tokenizer
        self.tokenizer: Any = TypedTextTokenizer(stock, choose)
        try:
            prompts = [[{"content": text.text}] for text in texts]
            rows = PretrainDatasetProcessor.preprocess_dataset(self, {"_prompt": prompts})
        finally:
            self.tokenizer = stock
        for text in texts if not stock.is_fast else ():
            accounts[text.source].guessed_messages += not text.text.is_uniform
        return self._finish(dict(rows), chosen, accounts)

    def _read_all(self, columns: dict[str, list[Any]], accounts: Accounts) -> Iterator[RawText]:
        """Yield the texts of a batch; a sample that has none is dropped and counted."""
        for i, prompt in enumerate(columns["_prompt"]):
            source, index = columns[SOURCE_COLUMN][i], columns[INDEX_COLUMN][i]
            account = accounts[source]
            account.samples += 1
            account.messages += 1
            account.typed_messages += bool(columns[TYPED_COLUMN][i])
            account.add_rules(columns[RULES_COLUMN][i])
            if self.attention_config is not None:
                account.sight.update(replies=0, blind=0)  # known to be none
            if not prompt:
                account.drop(INVALID, index)
                continue
            unread = len(prompt[1:]) + len(columns["_response"][i]) + bool(columns["_system"][i])
            if unread:
                account.notes[UNREAD] += unread
            message = prompt[0]
            with errors_name(f"dataset {source!r}, sample {index}"):
                check_contents(prompt[:1])
                weight = message.get(WEIGHT_KEY)
                if weight not in (None, 0, 1):
                    raise ValueError(f"weight {weight:g}: stage pt knows no weights but 0 and 1. Remove it.")
            text = TypedText(message["content"], message[TYPE_KEY], decode_spans(message.get(SPANS_KEY) or ""))
            yield RawText(source, index, text, weight)

    def _mark(self, text: RawText, ids: list[TypedTokenId], account: DatasetAccount) -> list[TypedTokenId] | None:
        """Return the ids of a whole text, marked where they are not trained; None: it is left out, and counted."""
        text.length = len(ids)
        try:
            with errors_name(f"dataset {text.source!r}, sample {text.index}"):
                return self._masked(text, ids, account)
        except SampleDropped as dropped:
            account.drop(str(dropped), text.index)
            return None

    def _masked(self, text: RawText, ids: list[TypedTokenId], account: DatasetAccount) -> list[TypedTokenId]:
        feedback = self.feedback_config
        encoded = [EncodedMessage(ids, "assistant", text.weight)]
        markers = find_markers(encoded, self.marker_id, feedback)
        text.markers = [place for _, place in deciding_markers(markers, feedback)]
        account.with_marker += bool(text.markers)
        if feedback is not None and not text.markers and feedback.missing != "train":
            if feedback.missing == "error":
                raise ValueError(f"it has no {feedback.token} (feedback.missing is 'error').")
            raise SampleDropped(NO_MARKER)

        (spans,) = untrained_spans(encoded, markers, feedback)
        if not spans:
            return ids
        masked = list(ids)
        for start, stop, reason in spans:
            masked[start:stop] = mark_untrained(ids[start:stop], reason)
        left = masked if self.data_args.packing else self._cut(masked)
        if not any(token.trained for token in left[1:]):  # nothing stands before the first
            if feedback is not None and feedback.empty == "error":
                raise ValueError("nothing is left to train (feedback.empty is 'error').")
            if len(left) < len(ids) and any(token.trained for token in masked):
                account.cut_marker(text.index)
            raise SampleDropped(NOTHING_TO_TRAIN)
        return masked

    def _cut(self, ids: list[TypedTokenId]) -> list[TypedTokenId]:
        """Return what the tokenizer's truncation leaves."""
        return ids[-self.data_args.cutoff_len :] if self._cuts_front else ids[: self.data_args.cutoff_len]

    @property
    def _cuts_front(self) -> bool:
        return bool(self.tokenizer.truncation_side == "left")

    def _finish(self, columns: dict[str, list[Any]], texts: list[RawText], accounts: Accounts) -> Any:
        """Read off what the ids carry, and let the first row carry the accounts through map and cache."""
        plain_rows = columns.pop("input_ids")
        rows = [fill_types(ids, self.hsa_config.default) for ids in plain_rows]
        located = locate(texts, rows, self.data_args.packing, self._cuts_front)
        has_mask = self.feedback_config is not None
        is_kept = [not has_mask or any(token.trained for token in ids[1:]) for ids in rows]
        for ids, parts, stays in zip(plain_rows, located, is_kept):
            account = accounts[texts[parts[0].text].source]
            account.filled_tokens += count_plain(ids)
            if not stays:
                account.notes[EMPTY_BLOCK] += 1
            elif self.attention_config is not None and len(parts) > 1:
                account.notes[SEEN_ACROSS] += 1

        kept = [r for r, stays in enumerate(is_kept) if stays]
        rows, located = [rows[r] for r in kept], [located[r] for r in kept]
        count_rows(texts, rows, located, accounts, self.tokenizer.pad_token_id)
        result = make_columns(texts, rows, located, has_mask)
        result |= {name: join([values[r] for r in kept] or [[0]]) for name, values in columns.items()}
        result[ACCOUNT_COLUMN] = account_column(serialize_accounts(accounts), len(kept))
        return to_table(result, self.media) if self.as_table else to_lists(result)

    def print_data_example(self, example: dict[str, Any]) -> None:
        if is_account_alone(example.get(ACCOUNT_COLUMN)):
            return
        with redirect_stdout(StringIO()) as printed:
            PretrainDatasetProcessor.print_data_example(self, example)
        print(show_hidden(printed.getvalue()), end="")
