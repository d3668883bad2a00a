"""LLaMA-Factory's processor of pairs (stages `dpo` and `rm`), plus the types and loss masks of both sides."""

from dataclasses import dataclass
from typing import Any, ClassVar

from llamafactory.data.processor import PairwiseDatasetProcessor

from ...training.preference import SIDES
from .aligned import INDEX_COLUMN, SOURCE_COLUMN
from .one_turn import PROMPT_WEIGHTS, OneTurnMixin, conversation_of
from .report import DatasetAccount
from .sample_errors import NOT_TWO_REPLIES, SampleDropped, errors_name
from .template import WEIGHT_KEY
from .typed_processor import Sample


_PAIRS_OF_TURNS = 2  # a prompt and a response


@dataclass
class TypedPairwiseProcessor(OneTurnMixin, PairwiseDatasetProcessor):
    """One row a pair: the prompt with the chosen reply, and the prompt with the rejected one.

    Feedback decides as in a conversation that ends with the reply. Only the reply is trained, whatever is said of the prompt.
    """

    prefixes: ClassVar[tuple[str, ...]] = tuple(f"{side}_" for side in SIDES)

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
                Sample(conversation_of(prompt, reply, side), facts=dict(facts)) for side, reply in zip(SIDES, replies)
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
            for side, sample in zip(SIDES, sides):
                self._check_trained(sample, side)

        sides[1].counted = len(sides[1].lengths) - _PAIRS_OF_TURNS
        account.notes[PROMPT_WEIGHTS] += sum(message.get(WEIGHT_KEY) not in (None, 0, 1) for message in prompt)
        account.prompts_cut += any(prompts_cut)
        self._count(sides, account)
        return sides
