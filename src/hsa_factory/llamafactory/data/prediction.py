"""LLaMA-Factory's processor for `predict_with_generate`, plus `semantic_ids` and `turn_ids` of the prompts."""

from array import array
from dataclasses import dataclass
from typing import Any

from llamafactory.data.processor import UnsupervisedDatasetProcessor

from ...typed.ids import TypedTokenId, count_plain, fill_types, read_off
from .aligned import INDEX_COLUMN, SOURCE_COLUMN
from .report import DatasetAccount
from .sample_errors import EMPTY_PROMPT, INVALID, MEDIA_TOO_LONG, TOO_LONG, SampleDropped, errors_name
from .token_table import Tokens
from .turns import number_prompt
from .typed_processor import Sample, TypedProcessorMixin


@dataclass
class TypedPredictionProcessor(TypedProcessorMixin, UnsupervisedDatasetProcessor):
    """One row a sample: the prompt as `input_ids`, the reference as `labels`. Feedback does not concern it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.has_weights = False
        self.template.on_prompt = self._remember_prompt
        self._prompt: list[TypedTokenId] = []

    def _remember_prompt(self, prompt_ids: list[TypedTokenId]) -> None:
        self._prompt = prompt_ids

    def _encode_sample(self, columns: dict[str, list[Any]], i: int, account: DatasetAccount) -> Sample:
        """Encode one sample as LLaMA-Factory does, cut to `cutoff_len`, its ids typed.

        Raises:
            SampleDropped: With the reason.
            ValueError: If it cannot be encoded; names the data set and the sample.
        """
        source, index = columns[SOURCE_COLUMN][i], columns[INDEX_COLUMN][i]
        with errors_name(f"dataset {source!r}, sample {index}"):
            arguments = self._typed_columns(columns, i)
            if len(arguments[0]) % 2 != 1:
                raise SampleDropped(INVALID)
            input_ids, labels = self._encode_uncached(*arguments)

        if not self._prompt:
            raise SampleDropped(EMPTY_PROMPT)
        if all(type(token) is int for token in input_ids):
            raise SampleDropped(TOO_LONG)
        if self._count_media_tokens(input_ids) < self._count_media_tokens(self._prompt):
            raise SampleDropped(MEDIA_TOO_LONG)

        added = count_plain(input_ids)
        typed = fill_types(input_ids)
        cut_away = len(self._prompt) - len(typed)
        semantic_ids, _ = read_off(typed)
        account.keep(semantic_ids, 0)
        account.guessed_messages += self.template.guessed
        account.lost_call_parts += self.template.lost_parts
        account.filled_tokens += self.template.filled + added
        account.text_truncated += cut_away > 0
        facts = {"dataset": source, "index": index, "cut": cut_away, "marker_cut": False}
        reference = array("i", labels)
        turn_ids = None
        if self.has_turns:
            turn_ids = number_prompt(arguments[0], self.template.lengths, len(self._prompt), added)[: len(typed)]
        tokens = Tokens(array("i", typed), semantic_ids, reference, bytes([1]) * len(reference), turn_ids)
        return Sample([], input_ids=typed, tokens=tokens, facts=facts)
